// Makes elements from text, never from markup.

const SVG = "http://www.w3.org/2000/svg";

export const find = (selector) => document.querySelector(selector);

/** An element with properties (`class`, `data` and `aria-*` among them) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** A screen reader reads the text once. */
export function announce(text) {
  find("#status").textContent = text;
}

export function megabytes(bytes) {
  const size = bytes / 1e6;
  return size >= 1 ? `${Number(size.toFixed(1))} MB` : `${Math.max(1, Math.round(bytes / 1e3))} kB`;
}

export function grouped(number) {
  return number.toLocaleString("en");
}

export function duration(seconds) {
  const ms = seconds * 1e3;
  if (ms >= 1e3) return `${seconds.toFixed(2)} s`;
  if (ms < 0.05) return "0 ms";
  return ms >= 10 ? `${Math.round(ms)} ms` : `${ms.toFixed(1)} ms`;
}
