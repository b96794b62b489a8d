
// Plots of the last 15 minutes, as SVG. Samples are 5 seconds apart, and the newest is at the right edge.

const SVG = 'http://www.w3.org/2000/svg';
const SAMPLES = 180;
const HEIGHT = 48;

// An element with attributes and children. Strings become text, never markup.
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawing(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// The outline of values from 0 to `most`; there is a gap where a value is null.
function outline(values, most) {
  const left = SAMPLES - values.length;
  let path = '';
  let isDrawing = false;
  values.forEach((value, index) => {
    if (value === null) {
      isDrawing = false;
      return;
    }
    const y = (HEIGHT - 1.5 - (value / most) * (HEIGHT - 4)).toFixed(1);
    // The short line makes a value between two gaps visible.
    path += isDrawing ? `L${left + index + 0.5} ${y}` : `M${left + index + 0.4} ${y}h0.1`;
    isDrawing = true;
  });
  return path;
}

// The area below a line without gaps. Only the newest value may be unknown.
function area(values, most) {
  const known = values.at(-1) === null ? values.slice(0, -1) : values;
  if (known.length === 0 || known.includes(null)) return '';
  const left = SAMPLES - values.length + 0.5;
  return `${outline(values, most)}L${left + known.length - 1} ${HEIGHT}L${left} ${HEIGHT}Z`;
}

// A figure whose `show` draws one or two series of values. `format` makes text of a value.
function plot(label, format, names = ['']) {
  const styles = names.map((_, index) => (index === 0 ? 'first' : 'second'));
  const figures = names.map(() => element('span', { class: 'figure' }, '–'));
  const keys = names.map((name, index) => {
    if (name === '') return figures[index];
    const key = drawing('svg', { viewBox: '0 0 24 8', 'aria-hidden': 'true' });
    key.append(drawing('path', { class: styles[index], d: 'M1 4H23' }));
    return element('span', {}, key, `${name} `, figures[index]);
  });
  const lines = styles.map((style) => drawing('path', { class: style }));
  const filled = drawing('path', { class: 'area' });
  const shape = { class: 'plot', role: 'img', viewBox: `0 0 ${SAMPLES} ${HEIGHT}`, preserveAspectRatio: 'none' };
  const svg = drawing('svg', shape, filled, ...lines);
  const most = element('span');
  const caption = element('figcaption', {}, element('span', {}, label), element('span', { class: 'keys' }, ...keys));
  const scale = element('div', { class: 'scale', 'aria-hidden': 'true' });
  scale.append(element('span', {}, '15 min ago'), most, element('span', {}, 'now'));
  const figure = element('figure', {}, caption, svg, scale);

  figure.show = (...series) => {
    const largest = Math.max(0, ...series.flat().filter((value) => value !== null));
    const texts = series.map((values) => {
      const last = values.at(-1);
      return last === undefined || last === null ? '–' : format(last);
    });
    series.forEach((values, index) => {
      lines[index].setAttribute('d', outline(values, largest || 1));
      figures[index].textContent = texts[index];
    });
    filled.setAttribute('d', series.length === 1 ? area(series[0], largest || 1) : '');
    most.textContent = largest > 0 ? `largest ${format(largest)}` : '';
    const now = texts.map((text, index) => `${names[index]} ${text === '–' ? 'none' : text}`.trim()).join(', ');
    svg.setAttribute('aria-label', `${label}, last 15 minutes: now ${now}; largest ${format(largest)}`);
  };
  return figure;
}
