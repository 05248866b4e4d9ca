// Tokens of a text with a latent's activation at each: colour by strength, every character visible.
import { html, at, away, number, percent, shared } from "ui";

export const hovered = shared(null); // the activation under the pointer, which histograms mark

const SHOWN = { "\n": "↵", "\t": "⇥", "\r": "␍", "\u200b": "∅", "\u00a0": "⍽", "\ufeff": "∅", "\u00ad": "‧" };
// control characters, and what hides text or turns its direction
const HIDDEN = /[\n\t\r\u200b\u00a0\ufeff\u00ad\u0000-\u001f\u007f-\u009f\u200c-\u200f\u202a-\u202e\u2060-\u206f]/g;
export const visible = text => text.replace(HIDDEN, c =>
  SHOWN[c] || `⟨${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
export const quoted = text => visible(text).replace(/^ +| +$/g, run => "␣".repeat(run.length)) || "∅";

// 0.05 + 0.95 log10(1 + 9 r): weak activations can be seen, the strongest stand out
export const strength = share => (share <= 0 ? 0 : 0.05 + 0.95 * Math.log10(1 + 9 * Math.min(share, 1)));

// the class of a number with a sign: blue above 0, orange below
export const sign = value => (value > 0 ? " plus" : value < 0 ? " minus" : "");
export const anySign = lists => (lists || []).some(values => values.some(value => value < 0));

// Where a character is spread over several tokens it stands at the last of them, with the strongest activation of all.
export function spans(tokens, activations) {
  const out = [];
  let carried = 0, first = null;
  tokens.forEach((text, i) => {
    const value = activations[i] ?? 0;
    if (Math.abs(value) > Math.abs(carried)) carried = value;
    first ??= i;
    if (text !== "") { out.push({ text, value: carried, first, last: i }); carried = 0; first = null; }
  });
  return out;
}

// signed: negative activations are usual here, so that positive ones are blue as well
export function Token({ text, value, maximum, anchor, muted, title, signed, onOpen }) {
  const share = maximum ? Math.abs(value) / maximum : 0;
  const over = event => {
    hovered.set(value);
    at(event, html`<div><b class="mono">${quoted(text)}</b></div>
      <div>${value ? html`activation <b>${number(value)}</b>, ${percent(share)} of the maximum` : "not active"}</div>
      ${title && html`<div class="soft">${title}</div>`}`);
  };
  const out = () => { hovered.set(null); away(); };
  const shown = visible(text), lead = /^ +(?=[^ ])/.exec(shown)?.[0] || ""; // the space before a word stays without colour
  return html`${lead}<span class=${`tok${signed ? sign(value) : ""}${anchor ? " anchor" : ""}${muted ? " muted" : ""}`}
    style=${{ "--v": muted ? 0 : strength(share) }} onMouseMove=${over} onMouseLeave=${out} onClick=${onOpen || over}
    >${shown.slice(lead.length)}</span>${text.includes("\n") && html`<wbr />`}`;
}

export function Tokens({ tokens, activations, maximum, anchor, counted, lines, signed = anySign([activations]) }) {
  return html`<span class=${lines ? "tokens lines" : "tokens"}>${spans(tokens, activations).map(one => html`<${Token}
    text=${one.text} value=${one.value} maximum=${maximum} signed=${signed} anchor=${one.first <= anchor && anchor <= one.last}
    muted=${counted && !counted[one.last]}
    title=${counted && !counted[one.last] && "the dictionary was not trained on this token"} />`)}</span>`;
}
