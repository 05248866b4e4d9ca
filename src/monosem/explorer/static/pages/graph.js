// The attribution graph of a prompt, in the viewer that `monosem graph` writes.
import { html, Field, Panel, useState } from "ui";
import { change } from "place";
import { Frame, themed } from "frame";
import { Progress, useJob } from "jobs";

export function GraphPage({ place, d }) {
  const { job, run, cancel, busy } = useJob();
  const [text, setText] = useState(place.t || "The capital of Italy is");
  const start = event => { event.preventDefault(); if (!text.trim()) return; change({ t: text }); run("graph", { dictionary: d, text, nodes: Number(place.n) || 300 }); };
  const found = job?.result;
  return html`<div class="lead"><h1>How does a prompt become its answer?</h1><p class="soft wide">The tokens and neurons that give most to the next token, as a graph. The trace takes some seconds to minutes.</p></div>
    <form onSubmit=${start}><${Panel} title="Prompt" help="Attention patterns and norms are frozen; then tokens, neurons and errors give to each other and to the logits what adds up exactly. Only the most influential stay.">
      <textarea rows="1" aria-label="Prompt" maxlength="1000" value=${text} onInput=${event => setText(event.target.value)} onKeyDown=${event => event.key === "Enter" && !event.shiftKey && start(event)}></textarea>
      <div class="row"><${Field} label="neurons at most"><input type="number" min="10" max="5000" value=${place.n || 300} onChange=${event => change({ n: event.target.value })} /><//>
        <button type="submit" class="first" disabled=${busy || !text.trim()}>Trace it</button></div><${Progress} job=${job} cancel=${cancel} /><//></form>
    ${found && html`<p class="soft">Click a node to see what it is made of · <a href=${themed(`/api/jobs/${job.id}/${found.page}`)} target="_blank">on a page of its own</a></p>
      <${Frame} title="Attribution graph" src=${`/api/jobs/${job.id}/${found.page}`} />`}`;
}
