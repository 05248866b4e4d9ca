// What all pages are made of: preact with htm, panels that explain themselves, numbers, one tip for what is hovered.
import { h, render, Component, createContext } from "preact";
import { useState, useEffect, useLayoutEffect, useMemo, useRef, useCallback } from "preact/hooks";
import htm from "htm";

export const html = htm.bind(h);
export { render, Component, createContext, useState, useEffect, useLayoutEffect, useMemo, useRef, useCallback };

// --- a value that several parts of a page share
export function shared(value) {
  const readers = new Set();
  return {
    get: () => value,
    set(next) { value = next; for (const reader of readers) reader(next); },
    use() {
      const [, again] = useState(0);
      useEffect(() => {
        const reader = () => again(n => n + 1);
        readers.add(reader);
        return () => readers.delete(reader);
      }, []);
      return value;
    },
  };
}

// --- numbers
export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  const text = size >= 1000 ? Math.round(value).toLocaleString("en")
    : size < 1e-3 ? value.toExponential(1)
    : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}
const LEAST = 1e-5; // shares below it are told as such
export const percent = (value, digits = 2) =>
  value === null || value === undefined || Number.isNaN(value) ? "–" : value > 0 && value < LEAST ? `< ${100 * LEAST} %` : `${number(100 * value, digits)} %`;

// --- a panel, and the question mark beside its title
export const helps = shared(false);
let panels = 0;

export function Help({ title, children }) {
  const all = helps.use();
  const [own, setOwn] = useState(false);
  const id = useMemo(() => `help-${++panels}`, []);
  const open = own || all;
  return html`<button type="button" class="help" aria-expanded=${String(open)} aria-controls=${id}
      aria-label=${`What is ${title}?`} onClick=${() => setOwn(!own)}>?</button>
    <p class="helptext" id=${id} hidden=${!open}>${children}</p>`;
}

// missing: why there is no content; more: what can be done about it
export function Panel({ title, help, missing, more, name, children, level = 2 }) {
  return html`<section class=${name ? `panel p-${name}` : "panel"}>
    <div class="title">${h(`h${level}`, null, title)}${help && html`<${Help} title=${title}>${help}<//>`}</div>
    ${missing ? html`<p class="soft">${missing.split("`").map((part, i) => (i % 2 ? html`<code>${part}</code>` : part))}</p>${more}` : children}
  </section>`;
}

export function Failed({ words }) {
  return words ? html`<p class="failed" role="alert">${words}</p>` : null;
}

export function Waiting({ words = "loading" }) {
  return html`<p class="waiting" role="status"><span class="dots" aria-hidden="true"></span>${words}</p>`;
}

export function Field({ label, children }) {
  return html`<label class="field"><span>${label}</span>${children}</label>`;
}

// --- the tip: any element with a function in `data.tip` shows it while it is hovered
export const tip = shared(null);

export function Tip() {
  const shown = tip.use();
  const box = useRef(null);
  useLayoutEffect(() => {
    if (!shown || !box.current) return;
    const size = box.current.getBoundingClientRect(), margin = 12;
    const x = Math.min(Math.max(shown.x - size.width / 2, margin), innerWidth - size.width - margin);
    const above = shown.y - size.height - 14 > 0;
    box.current.style.left = `${x}px`;
    box.current.style.top = `${above ? shown.y - size.height - 14 : shown.y + 20}px`;
  });
  return shown && html`<div class="tip" role="tooltip" ref=${box}>${shown.content}</div>`;
}
export const at = (event, content) => tip.set({ x: event.clientX, y: event.clientY, content });
export const away = () => tip.get() && tip.set(null);
