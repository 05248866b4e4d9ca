// What each layer would say, token by token.
import { html, Help, number, percent, Panel, useEffect, useState, at, away } from "ui";
import { change } from "place";
import { Progress, useJob } from "jobs";
import { quoted } from "tokens";

export function LensPage({ place, d }) {
  const { job, run, cancel, busy } = useJob();
  const [text, setText] = useState(place.t || "The capital of France is");
  const kind = place.kind === "tuned" ? "tuned" : "logit";
  const start = event => { event?.preventDefault(); if (!text.trim()) return; change({ t: text }); run("lens", { dictionary: d, text, lens: kind, chat: place.chat === "1" }); };
  useEffect(() => { if (place.t) start(); }, [kind, d]);
  const found = job?.result;
  return html`<div class="lead"><h1>What would each layer say?</h1><p class="soft wide">The state after each layer, read as if it were the last one: at which layer does the model's answer appear?</p></div>
    <form onSubmit=${start}><${Panel} title="Text" help="The model reads it; then each layer's state is read as if it were the last one (logit lens), or through translators that were trained for it (tuned lens).">
      <textarea rows="2" aria-label="Text" maxlength="4000" value=${text} onInput=${event => setText(event.target.value)} onKeyDown=${event => event.key === "Enter" && !event.shiftKey && start(event)}></textarea>
      <div class="row"><select aria-label="Lens" value=${kind} onChange=${event => change({ kind: event.target.value })}><option value="logit" selected=${kind === "logit"}>logit lens</option><option value="tuned" selected=${kind === "tuned"}>tuned lens</option></select>
        <label class="check"><input type="checkbox" checked=${place.chat === "1"} onChange=${event => change({ chat: event.target.checked ? "1" : "" })} /> as a chat</label>
        <button type="submit" class="first" disabled=${busy || !text.trim()}>Read it</button></div><${Progress} job=${job} cancel=${cancel} /><//></form>
    ${found && html`<${Panel} title="Layers × tokens" help="Each cell is the likeliest next token at that layer, the last layer on top; the stronger the colour, the higher its probability. Hover for the five likeliest.">
      <div class="matrix lens" tabindex="0" role="region" aria-label="Layers by tokens"><table><thead><tr><th scope="col" class="corner">layer</th>${found.tokens.map(token => html`<th scope="col"><span class="head mono">${quoted(token)}</span></th>`)}</tr></thead>
      <tbody>${found.layers.map((name, l) => [name, l]).reverse().map(([name, l]) => html`<tr><th scope="row" title=${name}>${name.replace(/^resid_post\./, "")}</th>${found.tokens.map((token, p) => html`<td class="word" style=${{ "--v": Math.min(found.probabilities[l][p][0], 1) * 0.85 }}
        onMouseMove=${event => at(event, html`<div>${name} after <b class="mono">${quoted(token)}</b></div>${found.top[l][p].map((word, k) => html`<div><span class="mono">${quoted(word)}</span> ${percent(found.probabilities[l][p][k])}</div>`)}
          <div class="soft">the final token has rank ${number(found.rank[l][p])}</div>`)} onMouseLeave=${away}>${quoted(found.top[l][p][0])}</td>`)}</tr>`)}</tbody></table></div><//>`}`;
}
