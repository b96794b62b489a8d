
// What an operator should know, in words.

// What became of requests, in words; the outcomes of the metrics.
const OUTCOMES = {
  abandoned: 'client gave up',
  accepted: 'accepted',
  broken: 'connection broke',
  dropped: 'not parsed, not stored',
  handed_on: 'answered by the backend',
  ignored: 'other command, answered OK',
  no_length: 'no length',
  not_allowed: 'source not allowed',
  not_found: 'wrong path',
  not_handed_on: 'backend did not answer',
  probe: 'console’s probe',
  refused: 'refused: application, signature or source',
  rejected: 'dead letter',
  repeated: 'repeated',
  too_large: 'too large',
  too_slow: 'too slow',
  unavailable: 'not stored: answered 503',
  wrong_method: 'wrong method',
};

function words(outcome) {
  return OUTCOMES[outcome] ?? outcome;
}

function sinkTone(sink) {
  return { up: 'good', starting: 'warn' }[sink.state] ?? 'bad';
}

// Longer is noise: a few events are always in flight.
const WEEK = 7 * 86400;

// From this percentage on, the log has `spool_filling`.
const NEARLY_FULL = 80;
const ALMOST_FULL = 95;

function fullIn(spool) {
  const seconds = spool.full_in_seconds ?? WEEK;
  if (seconds === 0) return 'It is full.';
  return seconds < WEEK ? `At the current rate it is full in ${duration(seconds)}.` : 'It is not filling.';
}

function waiting(number) {
  if (number === 0) return 'nothing waits';
  return number === 1 ? '1 event waits' : `${events(number)} wait`;
}

function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}

// Outcomes whose cause is the relay's own; anybody on the internet can cause the others.
const OWN_FAILURES = ['abandoned', 'dropped', 'unavailable'];

function lossFinding(tone, headline, recalls, isIncluded) {
  const lost = Object.entries(recalls).filter(([outcome]) => isIncluded(outcome));
  const causes = lost.map(([outcome, number]) => `${count(number)} ${words(outcome)}`);
  return lost.length === 0 ? [] : [[tone, headline, `In the last minute: ${causes.join(', ')}.`]];
}

// What is wrong with the sinks in this state.
function sinkFinding({ sinks, spool, ready }, state, link) {
  const stuck = sinks.filter((sink) => sink.state === state);
  if (stuck.length === 0) return [];
  const names = stuck.map((sink) => sink.sink).join(' and ');
  const text = `${names} ${stuck.length === 1 ? 'is' : 'are'} ${state}`;
  const waits = capital(waiting(Math.max(...stuck.map((sink) => sink.lag))));
  const headline = ready ? `Callbacks are accepted, ${link} ${text}` : capital(text);
  return [['warn', headline, `${waits} in the spool. ${fullIn(spool)}`]];
}

// From this age on, the alert RecallRelayEventsLate fires.
const LATE = 300;

// The sinks that are up, but fall behind.
function lateFindings({ sinks }) {
  const late = sinks.filter((sink) => sink.state === 'up' && sink.oldest_unconfirmed_seconds > LATE);
  return late.map(({ sink, lag, oldest_unconfirmed_seconds: oldest }) => {
    const detail = `${capital(waiting(lag))} in the spool, the oldest for ${duration(oldest)}.`;
    return ['warn', `Events reach ${sink} late`, detail];
  });
}

// With answer_after = "broker".
function answerFindings({ sinks, spool }) {
  const notAwaited = sinks.filter((sink) => sink.answers_wait === false);
  return notAwaited.map(({ sink }) => {
    const detail = `${capital(events(spool.at_risk_events))} on this machine alone.`;
    return ['warn', `Answers do not wait for ${sink}`, detail];
  });
}

function fillFinding({ spool, ready }) {
  // While callbacks are refused, that finding says why.
  if (!ready || spool.percent < NEARLY_FULL) return [];
  const tone = spool.percent >= ALMOST_FULL ? 'bad' : 'warn';
  const left = `${bytes(spool.available_bytes)} left. ${fullIn(spool)}`;
  return [[tone, `The spool is ${spool.percent} % full`, `${left} When it is full, callbacks are refused.`]];
}

// `spool.lost` counts over all starts. What an earlier start has lost is shown until its quarantined file is removed.
function damageFinding({ spool }) {
  const { lost, unreadable } = spool;
  const isRecent = spool.damaged || spool.quarantined.length > 0 || spool.lost_at_start > 0;
  if (!isRecent && unreadable === 0) return [];
  const found = [];
  if (lost > 0) found.push(`${events(lost)} lost`);
  if (unreadable > 0) found.push(`${events(unreadable)} unreadable and not published`);
  const detail = found.length === 0 ? 'No event was lost.' : `${capital(found.join(', '))}.`;
  let headline = 'The spool was damaged';
  if (unreadable > 0) headline = 'Events cannot be read';
  if (lost > 0) headline = 'Events were lost';
  return [['bad', headline, `${detail} Check the disk.`]];
}

function deadLetterFinding({ spool }) {
  const number = spool.dead_letters;
  if (number === 0) return [];
  const text = `Not accepted by any broker, so no subscriber receives them: ${count(number)}.`;
  return [['warn', 'Dead letters stay in the spool', text]];
}

// From this time on, the log has `certificate_expiring`.
const EXPIRES_SOON = 14 * 86400;

function certificateFinding({ certificate, at }) {
  if (!certificate) return [];
  const left = (new Date(certificate.expires_at) - new Date(at)) / 1000;
  if (left <= 0) {
    const detail = `${certificate.file}: replace it. Clients that check it send no callbacks.`;
    return [['bad', 'The certificate has expired', detail]];
  }
  if (left > EXPIRES_SOON) return [];
  const detail = `${certificate.file}: replace it. Once it has expired, clients that check it send no callbacks.`;
  return [['warn', `The certificate expires in ${duration(left)}`, detail]];
}

const SEVERITY = { bad: 0, warn: 1, good: 2 };

// Tone, headline and detail of each thing that an operator should know, the worst first.
function findings(status) {
  const { ready, reason, upstream } = status;
  const recalls = status.callbacks.recalls_not_accepted_last_minute;
  const isOwn = (outcome) => OWN_FAILURES.includes(outcome);
  const found = lossFinding('bad', 'Recalls are being lost', recalls, isOwn);
  found.push(...damageFinding(status), ...fillFinding(status), ...certificateFinding(status));
  if (reason === 'relay is stopping') {
    found.unshift(['warn', 'The relay is stopping', 'It finishes what it has begun.']);
  } else if (!ready) {
    found.unshift(['bad', 'Callbacks are refused', `${capital(reason)}. The vendor does not send a recall again.`]);
  }
  found.push(...sinkFinding(status, 'down', 'but'), ...sinkFinding(status, 'starting', 'and'));
  found.push(...lateFindings(status), ...answerFindings(status));
  if (upstream?.state === 'down') {
    const detail = 'Commands other than recalls are answered as upstream.on_failure says.';
    found.push(['warn', 'The backend does not answer', detail]);
  }
  found.push(...lossFinding('warn', 'Some recalls are not accepted', recalls, (outcome) => !isOwn(outcome)));
  found.push(...deadLetterFinding(status));
  if (found.length === 0) found.push(['good', 'Callbacks are accepted and published', 'Nothing is stuck.']);
  return found.sort(([one], [another]) => SEVERITY[one] - SEVERITY[another]);
}

function spoolTone({ spool, sinks, ready }) {
  if (!ready || spool.percent >= ALMOST_FULL) return 'bad';
  const isStuck = spool.unconfirmed_events > 0 && sinks.some((sink) => sink.state !== 'up');
  return isStuck || spool.percent >= NEARLY_FULL ? 'warn' : 'good';
}
