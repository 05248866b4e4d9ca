// A latent of Neuronpedia, read over the network when it is asked for, in the renderer of our own.
import { html, Failed, Panel, Waiting, useEffect, useState } from "ui";
import { change } from "place";
import { useData } from "server";
import { LatentView } from "latent-view";

export function Public({ place }) {
  const [typed, setTyped] = useState(place.u || "");
  useEffect(() => setTyped(place.u || ""), [place.u]);
  const { value: page, error } = useData(place.u ? "public" : null, { u: place.u });
  const open = event => { event.preventDefault(); if (typed.trim()) change({ u: typed.trim() }, true); };
  const form = html`<form class="try" onSubmit=${open}><input class="mono" aria-label="Address of a latent" value=${typed} maxlength="500"
      placeholder="gpt2-small/6-res-jb/650" onInput=${event => setTyped(event.target.value)} /><button type="submit">Read it</button></form>`;
  return html`${!page && html`<div class="lead"><h1>A latent of Neuronpedia</h1><p class="soft wide">Write a model, a source and a number, or paste the address of the latent's page. It is read over the network, once, and shown here like a latent of your own.</p></div>`}
    <${Panel} title="Where it is" help="Model, source and number, or the address of its page; this asks the network, once, and nothing else here does.">${form}<//>
    ${place.u && (error ? html`<${Failed} words=${error} />` : !page ? html`<${Waiting} words="asking Neuronpedia" />` : html`<${LatentView} page=${page} />`)}`;
}
