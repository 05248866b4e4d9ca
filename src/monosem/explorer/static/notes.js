// Stars, lists and notes: what the server holds, and changes of it.
import { html, shared, useEffect } from "ui";
import { get, post } from "server";

const notes = shared(null);
export const problem = shared(null);
export const STARS = "stars";

export function useNotes() {
  const held = notes.use();
  useEffect(() => { if (!notes.get()) get("notes").then(notes.set, error => problem.set(error.message)); }, []);
  return held || { lists: {}, notes: [] };
}
export async function keep(change) {
  try { notes.set(await post("notes", change)); problem.set(null); }
  catch (error) { problem.set(error.message); }
}
export const starred = (held, d, i) => (held.lists[STARS] || []).some(([name, latent]) => name === d && latent === i);
export const toggle = (held, d, i) => keep({ [starred(held, d, i) ? "take" : "put"]: [STARS, [[d, i]]] });
export const noteOf = (held, d, i) => held.notes.find(one => one.dictionary === d && one.latent === i)?.text || "";

export function Star({ d, i }) {
  const held = useNotes(), on = starred(held, d, i);
  return html`<button type="button" class="star" aria-pressed=${String(on)} aria-label=${`Star latent ${i}`}
    onClick=${() => toggle(held, d, i)}>${on ? "★" : "☆"}</button>`;
}
