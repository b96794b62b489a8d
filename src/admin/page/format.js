
'use strict';

// Figures and times as people read them. Times are UTC, as in the log.

const NUMBER = new Intl.NumberFormat('en-GB');
const ONE_DECIMAL = new Intl.NumberFormat('en-GB', { maximumFractionDigits: 1 });

function count(number) {
  return NUMBER.format(Math.round(number));
}

function events(number) {
  return number === 1 ? '1 event' : `${count(number)} events`;
}

function rate(perSecond) {
  return `${perSecond < 100 ? ONE_DECIMAL.format(perSecond) : count(perSecond)}/s`;
}

function bytes(number) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  // 1,023.9 KiB would be rounded to 1,024 KiB.
  while (number >= 1023.5 && unit < units.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${number < 100 ? ONE_DECIMAL.format(number) : count(number)} ${units[unit]}`;
}

// Short durations, such as an answer's.
function latency(seconds) {
  if (seconds < 0.001) return `${count(seconds * 1e6)} µs`;
  if (seconds < 1) return `${seconds < 0.1 ? ONE_DECIMAL.format(seconds * 1e3) : count(seconds * 1e3)} ms`;
  return `${ONE_DECIMAL.format(seconds)} s`;
}

// Durations that may be long, such as an age.
function duration(seconds) {
  if (seconds < 10) return seconds > 0 ? latency(seconds) : '0 s';
  const parts = [
    ['d', Math.floor(seconds / 86400)],
    ['h', Math.floor(seconds / 3600) % 24],
    ['min', Math.floor(seconds / 60) % 60],
    ['s', Math.floor(seconds) % 60],
  ];
  const first = parts.findIndex(([, value]) => value > 0);
  // Two units suffice: `3 h 20 min`.
  const shown = parts.slice(first, first + 2).filter(([, value]) => value > 0);
  return shown.map(([unit, value]) => `${value} ${unit}`).join(' ');
}

function clock(time) {
  return `${time.toISOString().slice(11, 19)} UTC`;
}

// An RFC 3339 time; with its day if that is not `today`'s.
function moment(text, today) {
  const time = new Date(text);
  const day = time.toISOString().slice(0, 10);
  return day === today.toISOString().slice(0, 10) ? clock(time) : `${day} ${clock(time)}`;
}
