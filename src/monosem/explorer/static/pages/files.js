// Latents as files of other tools have them, with what of them cannot be relied on.
import { html, Failed, Waiting } from "ui";
import { useData } from "server";
import { change } from "place";
import { LatentView } from "latent-view";

export function Files({ place, home }) {
  const file = home.files.find(one => one.number === Number(place.n || 0)), listed = file?.latents || [];
  const i = listed.includes(Number(place.i)) ? Number(place.i) : listed[0], at = listed.indexOf(i);
  const { value: page, error } = useData(file && i !== undefined ? "file" : null, { n: file?.number, i });
  if (!file) return html`<div class="lead"><h1>Files of other tools</h1><p class="soft wide">${home.files.length ? `There is no file ${place.n}.` : "No file is open. Name what sae-dashboard or sae_vis wrote, or what Neuronpedia exports:"} <code>monosem explore --dashboards batch-0.json</code></p></div>`;
  const step = by => change({ i: listed[(at + by + listed.length) % listed.length] }, true);
  const actions = html`<p class="actions">${home.files.length > 1 && html`<select aria-label="File" value=${file.number} onChange=${event => change({ n: event.target.value, i: "" }, true)}>${home.files.map(one => html`<option value=${one.number} selected=${one === file}>${one.path}</option>`)}</select>`}
    <button type="button" onClick=${() => step(-1)} aria-label="Previous latent">‹ previous</button><button type="button" onClick=${() => step(1)} aria-label="Next latent">next ›</button>
    <span class="soft">${at + 1} of ${listed.length} in ${file.path}</span></p>`;
  return error ? html`<${Failed} words=${error} />` : !page ? html`<${Waiting} />` : html`<${LatentView} page=${page} actions=${actions} />`;
}
