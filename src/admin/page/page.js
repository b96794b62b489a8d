
// Asks `/status` (docs/reference/status.md) every two seconds while the page is visible, and shows the answer.

const POLL_EVERY = 2000;
const TIMEOUT = 5000;
const VERSION = 1;

const MARKS = { good: '✓', warn: '!', bad: '✕' };

const byId = (id) => document.getElementById(id);

function setTone(target, tone) {
  target.classList.remove('good', 'warn', 'bad');
  target.classList.add(tone);
}

// A sentence with a mark, so that colour is not the only sign.
function say(target, tone, text) {
  setTone(target, tone);
  target.replaceChildren(element('span', { class: 'mark', 'aria-hidden': 'true' }, MARKS[tone]), text);
}

function facts(target, pairs) {
  const row = ([name, value]) => element('div', {}, element('dt', {}, name), element('dd', {}, value));
  target.replaceChildren(...pairs.map(row));
}

// Calls `render` only if what it shows has changed, so that a selection or a focus is not lost.
const rendered = new Map();
function ifChanged(name, content, render) {
  const text = JSON.stringify(content);
  if (rendered.get(name) === text) return;
  rendered.set(name, text);
  render();
}

// --- the state: what flows, and where it is stuck ---

const last = (values) => values?.at(-1) ?? 0;

function step(name, tone, text, figure) {
  const state = element('span');
  say(state, tone, text);
  return element('li', {}, element('strong', {}, name), state, element('span', { class: 'figure' }, figure));
}

function showVerdict(status) {
  const { spool } = status;
  const [[tone, headline, detail], ...others] = findings(status);
  setTone(byId('verdict'), tone);
  ifChanged('headline', [tone, headline], () => say(byId('headline'), tone, headline));
  byId('detail').textContent = detail;
  byId('others').replaceChildren(...others.map(([each, text, more]) => {
    const item = element('li');
    say(item, each, `${text}. ${more}`);
    return item;
  }));
  document.title = `${MARKS[tone]} ${headline} – recall-relay`;
  const rates = Object.values(status.history.callbacks_per_second).map(last);
  const inward = rates.reduce((sum, each) => sum + each, 0);
  const steps = [
    step('Callbacks', status.ready ? 'good' : 'bad', status.ready ? 'accepted' : 'refused', rate(inward)),
    step('Spool', spoolTone(status), waiting(spool.unconfirmed_events), `${bytes(spool.available_bytes)} free`),
    ...status.sinks.map((sink) => {
      const confirmed = last(status.history.sinks[sink.sink].confirmed_per_second);
      return step(`Sink ${sink.sink}`, sinkTone(sink), sink.state, `${rate(confirmed)} confirmed`);
    }),
  ];
  byId('flow').replaceChildren(...steps);
}

// --- the cards ---

// The samples of what is known at this moment, too, so that a plot agrees with the texts beside it.
function withNow(values, now) {
  return [...values.slice(1 - SAMPLES), now];
}

const outcomePlots = new Map();

function showCallbacks({ callbacks, history }) {
  const total = Object.values(callbacks.total).reduce((sum, each) => sum + each, 0);
  const since = total === 1 ? '1 request' : `${count(total)} requests`;
  byId('callbacks-note').textContent = `${since} since the start. Rates by outcome:`;
  // The usual outcome is there from the beginning.
  const none = history.unconfirmed_events.map(() => 0);
  const present = Object.entries({ accepted: none, ...history.callbacks_per_second });
  for (const [outcome, figure] of outcomePlots) {
    if (!present.some(([name]) => name === outcome)) {
      figure.remove();
      outcomePlots.delete(outcome);
    }
  }
  for (const [outcome, rates] of present) {
    if (!outcomePlots.has(outcome)) {
      outcomePlots.set(outcome, plot(words(outcome), rate));
      byId('outcomes').append(outcomePlots.get(outcome));
    }
    outcomePlots.get(outcome).show(rates);
  }
}

const answerPlot = plot('Answer', latency, ['p50', 'p99']);
const commitPlot = plot('Commit', latency, ['p50', 'p99']);
const bytesPlot = plot('Used', bytes);
const waitingPlot = plot('Waiting events', count);

function showLatency({ history }) {
  answerPlot.show(history.answer_p50_seconds, history.answer_p99_seconds);
  commitPlot.show(history.commit_p50_seconds, history.commit_p99_seconds);
}

function showSpool(status) {
  const { spool, history } = status;
  const tone = spoolTone(status);
  say(byId('spool-state'), tone, capital(waiting(spool.unconfirmed_events)));
  byId('spool-note').textContent = fullIn(spool);
  setTone(byId('spool-bar'), tone);
  byId('spool-bar').setAttribute('aria-valuenow', spool.percent);
  byId('spool-taken').style.width = `${spool.percent}%`;
  const left = `${bytes(spool.available_bytes)} of ${bytes(spool.capacity_bytes)} left`;
  byId('spool-space').textContent = `${spool.percent} % taken, ${left}`;
  waitingPlot.show(withNow(history.unconfirmed_events, spool.unconfirmed_events));
  bytesPlot.show(withNow(history.spool_used_bytes, spool.used_bytes));
  facts(byId('spool-facts'), [
    ['Events kept', count(spool.events)],
    ['Newest event', `number ${count(spool.last_seq)}`],
    ...(spool.at_risk_events !== undefined ? [['On this machine alone', count(spool.at_risk_events)]] : []),
    ...(spool.unreadable > 0 ? [['Unreadable events', count(spool.unreadable)]] : []),
    ...(spool.lost > 0 ? [['Lost events', count(spool.lost)]] : []),
    ...(spool.damaged ? [['Damage found', spool.damaged]] : []),
    ...spool.quarantined.map((path) => ['Quarantined', path]),
  ]);
}

function sinkCard(name) {
  const state = element('p', { class: 'state' });
  const note = element('p', { class: 'note' });
  const lag = plot('Waiting events', count);
  const oldest = plot('Age of the oldest', duration);
  const confirmed = plot('Confirmed', rate);
  const list = element('dl', { class: 'facts' });
  const plots = element('div', { class: 'plots' }, lag, oldest, confirmed);
  const card = element('section', { class: 'card' }, element('h2', {}, `Sink ${name}`), state, note, plots, list);
  card.show = (sink, history, now) => {
    say(state, sinkTone(sink), sink.since ? `${sink.state} since ${moment(sink.since, now)}` : sink.state);
    note.textContent = sink.reason ?? '';
    lag.show(withNow(history.lag, sink.lag));
    // Without an age, the sink has confirmed what was the oldest event at the last sample.
    const age = sink.oldest_unconfirmed_seconds ?? (sink.lag > 0 ? null : 0);
    oldest.show(withNow(history.oldest_unconfirmed_seconds, age));
    confirmed.show(history.confirmed_per_second);
    facts(list, [
      ['Confirmed since the start', count(sink.confirmed)],
      ['Refused since the start', count(sink.refused)],
      ['Confirmed up to', `number ${count(sink.cursor)}`],
    ]);
  };
  return card;
}

const sinkCards = new Map();

function showSinks({ sinks, history }, now) {
  // After a restart, the relay may have other sinks.
  for (const [name, card] of sinkCards) {
    if (!sinks.some(({ sink }) => sink === name)) {
      card.remove();
      sinkCards.delete(name);
    }
  }
  for (const sink of sinks) {
    if (!sinkCards.has(sink.sink)) {
      sinkCards.set(sink.sink, sinkCard(sink.sink));
      byId('sinks').append(sinkCards.get(sink.sink));
    }
    sinkCards.get(sink.sink).show(sink, history.sinks[sink.sink], now);
  }
}

function showUpstream({ upstream }, now) {
  const note = byId('upstream-note');
  if (!upstream) {
    byId('upstream-state').textContent = 'None';
    note.textContent = 'Commands other than recalls are answered OK and discarded (upstream.url is not set).';
    return;
  }
  const isUp = upstream.state === 'up';
  const since = upstream.since ? ` since ${moment(upstream.since, now)}` : '';
  say(byId('upstream-state'), isUp ? 'good' : 'bad', upstream.state + since);
  note.textContent = upstream.reason ?? 'Commands other than recalls are handed on.';
}

function showDeadLetters({ spool }) {
  const number = spool.dead_letters;
  const text = number === 0 ? 'None in the spool' : `${count(number)} in the spool`;
  say(byId('dead-letters-state'), number === 0 ? 'good' : 'warn', text);
  byId('dead-letters-note').textContent = number === 0
    ? 'Dead letters, if any, are in the dead-letter topic or queue.'
    : 'No subscriber receives them. List them with: recall-relay spool dead-letters list';
}

function problemItem(problem, now) {
  const tone = problem.level === 'ERROR' ? 'bad' : 'warn';
  const level = element('strong', { class: 'state' });
  say(level, tone, problem.level);
  const head = element('p', { class: `problem-head ${tone}` }, level);
  if (problem.last_at) {
    head.append(element('time', { datetime: problem.last_at }, moment(problem.last_at, now)));
  }
  if (problem.code) head.append(element('code', {}, problem.code));
  if (problem.times > 1) {
    const first = problem.first_at ? ` since ${moment(problem.first_at, now)}` : '';
    head.append(element('span', { class: 'times' }, `${count(problem.times)} times${first}`));
  }
  const fields = Object.entries(problem.fields).map(([name, value]) =>
    element('span', {}, `${name} `, element('b', {}, value)));
  const list = element('p', { class: 'problem-fields' }, ...fields);
  return element('li', {}, head, element('p', {}, problem.message), list);
}

function showProblems({ problems, log_lines_dropped: dropped }, now) {
  const lines = problems.length === 0 ? 'None since the start.' : 'The latest first; the log has all of them.';
  byId('problems-note').textContent = dropped > 0 ? `${lines} ${count(dropped)} log lines were dropped.` : lines;
  ifChanged('problems', [problems, now.getUTCDate()], () => {
    byId('problem-list').replaceChildren(...problems.map((problem) => problemItem(problem, now)));
  });
}

function showSettings({ settings }) {
  ifChanged('settings', settings, () => {
    const rows = settings.map((each) => {
      const source = each.restart_needed ? `${each.source}; another value waits for a restart` : each.source;
      const name = element('th', { scope: 'row' }, element('code', {}, each.setting));
      return element('tr', {}, name, element('td', {}, each.value || '–'), element('td', {}, source));
    });
    byId('setting-rows').replaceChildren(...rows);
  });
}

// --- polling ---

let answeredAt = null;
let timer = null;
let isAsking = false;

function show(status) {
  const now = new Date(status.at);
  byId('main').hidden = false;
  showVerdict(status);
  showCallbacks(status);
  showLatency(status);
  showSpool(status);
  showSinks(status, now);
  showUpstream(status, now);
  showDeadLetters(status);
  showProblems(status, now);
  showSettings(status);
  byId('live').textContent = `Live, ${clock(now)}`;
  const started = status.relay.started_at ? `, started ${moment(status.relay.started_at, now)}` : '';
  const { version, uptime_seconds: uptime } = status.relay;
  byId('about').textContent = `Version ${version}${started}, up for ${duration(uptime)}. ` +
    'All times are UTC. This page changes nothing.';
  answeredAt = now;
}

function setStale(text) {
  document.body.classList.toggle('is-stale', text !== '');
  byId('stale').hidden = text === '';
  ifChanged('stale', text, () => { byId('stale').textContent = text; });
}

async function ask() {
  const answer = await fetch('status', { cache: 'no-store', signal: AbortSignal.timeout(TIMEOUT) });
  if (!answer.ok) throw new Error(`it answered ${answer.status}`);
  return answer.json();
}

function showAnswer(status) {
  if (status.version !== VERSION) {
    setStale('The relay has another version than this page. Reload the page.');
    return;
  }
  show(status);
  setStale('');
}

function showNoAnswer() {
  setStale(answeredAt === null
    ? 'The relay does not answer.'
    : `The relay has not answered since ${clock(answeredAt)}. The figures below are from then.`);
  byId('live').textContent = answeredAt === null ? 'No answer' : `Old, from ${clock(answeredAt)}`;
  document.title = '✕ No answer – recall-relay';
}

async function poll() {
  if (isAsking || document.hidden) return;
  isAsking = true;
  clearTimeout(timer);
  const status = await ask().catch(() => null);
  isAsking = false;
  timer = setTimeout(poll, POLL_EVERY);
  if (status === null) {
    showNoAnswer();
  } else {
    showAnswer(status);
  }
}

byId('latency-plots').append(answerPlot, commitPlot);
byId('spool-plots').append(waitingPlot, bytesPlot);
document.addEventListener('visibilitychange', poll);
poll();
