// How latents lie to each other: which views there are, and what they share.
import { html, useEffect, useState } from "ui";
import { get } from "server";
import { Link } from "place";
import { useJob } from "jobs";

export const VIEWS = {
  map: ["Map", "Decoder rows of one or several dictionaries on a plane, and their clusters."],
  splitting: ["Families", "Which latents of a wider dictionary come from which of a narrower one, as a tree."],
  circles: ["Circles", "Do weekdays, or months, lie on a circle in their order, or only by chance?"],
  meta: ["Meta-latents", "A latent as a sum of directions that it shares with others."],
  absorbers: ["Absorbers", "Latents of single words that fire in place of a first letter's latent."],
  writes: ["Writes", "What every latent promotes and suppresses, and which kinds of tokens, in one table."],
};

export function Views({ now, d }) {
  return html`<nav class="tabs" aria-label="Views of geometry">${Object.entries(VIEWS).map(([name, [title]]) => html`<${Link} page=${name} state=${{ d }} class="button"
    aria-current=${name === now ? "page" : undefined}>${title}<//>`)}</nav>`;
}

export function Geometry({ d }) {
  return html`<div class="lead"><h1>How do latents lie to each other?</h1></div>
    <div class="cards">${Object.entries(VIEWS).map(([name, [title, words]]) => html`<${Link} page=${name} state=${{ d }} class="card"><span class="name">${title}</span><span class="soft">${words}</span><//>`)}</div>`;
}

// what was computed before: {value} (null where it was not), or the job that computes it now; a null kind asks nothing
export function useComputed(kind, ask) {
  const key = kind && JSON.stringify([kind, ask]);
  const { job, run, cancel, busy } = useJob();
  const [held, setHeld] = useState({}), [asked, setAsked] = useState(null);
  useEffect(() => {
    if (!key) return undefined;
    let wanted = true;
    get("computed", { kind, ask: JSON.stringify(ask) }).then(({ result }) => wanted && setHeld({ key, value: result }), error => wanted && setHeld({ key, error: error.message }));
    return () => { wanted = false; };
  }, [key]);
  const own = asked === key ? job : null;
  const value = own?.state === "done" ? own.result : held.key === key ? held.value : undefined;
  return { value, error: held.key === key ? held.error : null, job: own, cancel, busy: busy && asked === key, start: () => { setAsked(key); run(kind, ask); } };
}
