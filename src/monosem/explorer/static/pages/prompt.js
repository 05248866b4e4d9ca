// A text, and the latents that fire at each of its tokens.
import { html, number, percent, Panel, useEffect, useMemo, useState, at, away } from "ui";
import { change, go, Link } from "place";
import { Progress, useJob } from "jobs";
import { anySign, quoted, sign, strength } from "tokens";

export function Prompt({ place, d }) {
  const { job, run, cancel, busy } = useJob();
  const [text, setText] = useState(place.t || ""), [other, setOther] = useState(place.o || "");
  const start = event => { event?.preventDefault(); if (!text.trim()) return; change({ t: text, o: other }); run("prompt", { dictionary: d, text, other, n: 12, chat: place.chat === "1" }); };
  useEffect(() => { if (place.t) start(); }, [d]);
  const found = job?.result;
  return html`<div class="lead"><h1>What fires on a text?</h1><p class="soft wide">Every token of a text with the latents that fire there, or the latents that tell two texts apart.</p></div>
    <form onSubmit=${start}><${Panel} title="Text" help="The model reads it up to the dictionary's site; first tokens, special ones and outliers are left out, because the dictionary was not trained on them.">
      <textarea rows="2" aria-label="Text" maxlength="4000" placeholder="Write a text" value=${text} onInput=${event => setText(event.target.value)} onKeyDown=${event => event.key === "Enter" && !event.shiftKey && start(event)}></textarea>
      <details open=${Boolean(other)}><summary>compare with a second text</summary><textarea rows="2" aria-label="Second text" maxlength="4000" value=${other} onInput=${event => setOther(event.target.value)}></textarea></details>
      <div class="row"><label class="check"><input type="checkbox" checked=${place.chat === "1"} onChange=${event => change({ chat: event.target.checked ? "1" : "" })} /> as a chat</label>
        <button type="submit" class="first" disabled=${busy || !text.trim()}>Read it</button></div><${Progress} job=${job} cancel=${cancel} /><//></form>
    ${found && html`<${Matrix} d=${d} found=${found} place=${place} />${found.contrast && html`<${Contrast} d=${d} found=${found} />`}`}`;
}

const wordsOf = found => new Map(found.words.map(row => [row.latent, row.label || (row.fires_on || []).map(quoted).join(" ")]));

function Matrix({ d, found, place }) {
  const words = useMemo(() => wordsOf(found), [found]), signed = anySign(found.matrix);
  const token = place.p === undefined || place.p === "" ? null : Number(place.p);
  const rows = found.latents.map((latent, r) => ({ latent, values: found.matrix[r], maximum: found.maxima ? found.maxima[r] : Math.max(...found.matrix[r].map(Math.abs)) }));
  const shown = token === null ? rows : rows.filter(row => row.values[token]).sort((a, b) => Math.abs(b.values[token]) / b.maximum - Math.abs(a.values[token]) / a.maximum);
  return html`<${Panel} title="Tokens × latents" help=${`Each row is a latent, each column a token; the stronger the colour, the nearer to ${found.maxima ? "the latent's own maximum" : "its largest value here"}. Shown are the ${rows.length} latents that ${found.maxima ? "come nearest to their maximum" : "are strongest"} at some token; more may fire. Choose a token to see which fire there.`}>
    ${token !== null && html`<p class="soft">at <b class="mono">${quoted(found.tokens[token] || "")}</b>: ${shown.length} of these latents <button type="button" onClick=${() => change({ p: "" })}>all tokens</button></p>`}
    <div class="matrix" tabindex="0" role="region" aria-label="Tokens by latents"><table><thead><tr><th scope="col" class="corner">latent</th>${found.tokens.map((text, i) => html`<th scope="col"><button type="button" class=${i === token ? "col chosen" : "col"} aria-pressed=${String(i === token)} onClick=${() => change({ p: i === token ? "" : i })}>${quoted(text)}</button></th>`)}</tr></thead>
      <tbody>${shown.map(row => html`<tr key=${row.latent}><th scope="row"><${Link} page="latent" state=${{ d, i: row.latent, t: place.t }}>${row.latent}<//> <span class="soft mono">${words.get(row.latent) || ""}</span></th>
        ${row.values.map((value, i) => html`<td class=${`cell${signed ? sign(value) : ""}${found.counted[i] ? "" : " out"}`} style=${{ "--v": strength(row.maximum ? Math.abs(value) / row.maximum : 0) }}
          onMouseMove=${event => at(event, !found.counted[i] ? "the dictionary was not trained on this token" : html`<div><b>${row.latent}</b> at <span class="mono">${quoted(found.tokens[i])}</span></div><div>${value ? `${number(value)}, ${percent(row.maximum ? Math.abs(value) / row.maximum : 0)} of the maximum` : "not active"}</div>`)} onMouseLeave=${away}></td>`)}</tr>`)}</tbody></table></div><//>`;
}

function Contrast({ d, found }) {
  const words = useMemo(() => wordsOf(found), [found]);
  const most = Math.max(...found.contrast.flatMap(row => [Math.abs(row.here), Math.abs(row.there)]), 1e-9);
  return html`<${Panel} title="What differs" help="The largest activation of each latent in either text, in its own units; the largest differences come first.">
    <table class="changes"><thead><tr><th scope="col">latent</th><th scope="col" class="n">first text</th><th scope="col" class="n">second text</th></tr></thead><tbody>
    ${found.contrast.slice(0, 20).map(row => html`<tr><th scope="row"><${Link} page="latent" state=${{ d, i: row.latent }}>${row.latent}<//> <span class="soft mono">${words.get(row.latent) || ""}</span></th>
      ${[row.here, row.there].map(value => html`<td class="n"><span class="meter" style=${{ "--w": Math.abs(value) / most }}>${number(value)}</span></td>`)}</tr>`)}</tbody></table><//>`;
}
