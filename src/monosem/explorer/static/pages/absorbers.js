// First-letter absorption, latent by latent and word by word.
import { html, Failed, number, Panel, percent, Waiting } from "ui";
import { Link } from "place";
import { Progress } from "jobs";
import { said } from "page/dictionary";
import { useComputed, Views } from "page/geometry";

export function Absorbing({ d, home }) {
  const about = home.dictionaries.find(one => one.name === d);
  const { value, error, job, cancel, busy, start } = useComputed(about?.writes ? null : "absorbers", { dictionary: d });
  const link = i => html`<${Link} page="latent" state=${{ d, i }}>${i}<//> <span class="soft mono">${said(value.said[i])}</span>`;
  return html`<div class="lead"><h1>Who takes a letter's place?</h1><p class="soft wide">A latent of “begins with L” should fire at every word that does. Sometimes a latent of the single word gives the letter instead, and the letter's own is silent: it was absorbed.</p></div>
    <${Views} now="absorbers" d=${d} />
    ${about?.writes && html`<p class="soft">This is a transcoder: absorption is of dictionaries that read and write at one place.</p>`}
    ${value === null && html`<button type="button" class="first" disabled=${busy} onClick=${start}>Ask the model for first letters</button> <span class="soft">some minutes on a processor</span>`}
    <${Failed} words=${error} /><${Progress} job=${job} cancel=${cancel} />
    ${value === undefined && !job && !error && !about?.writes && html`<${Waiting} />`}
    ${value && html`<p class="soft">${value.notes.join(" ")}</p><div class="pair both">
      <${Panel} title="Letters" help="Latents that a probe of the letter needs; the share of its test words whose letter was absorbed at least in part, and of those where the letter's latents are silent."><div class="scrolls" tabindex="0" role="region" aria-label="Letters"><table>
        <thead><tr><th scope="col">letter</th><th scope="col">its latents</th><th scope="col" class="n">words</th><th scope="col" class="n">absorbed</th><th scope="col" class="n">in full</th></tr></thead>
        <tbody>${value.letters.map(row => html`<tr><th scope="row"><b>${row.letter.toUpperCase()}</b></th><td>${row.main.map(i => html`<div>${link(i)}</div>`)}</td><td class="n">${row.words}</td><td class="n">${percent(row.fraction)}</td><td class="n">${percent(row.full)}</td></tr>`)}</tbody></table></div><//>
      <${Panel} title="Latents that absorb" help="At these words the latent gives the letter in place of the letter's own latents; the share of the letter's direction that it gives there.">
        ${!value.latents.length ? html`<p class="soft">None: at no judged word does another latent take a letter's place.</p>` : html`<table><thead><tr><th scope="col">latent</th><th scope="col">letter</th><th scope="col">words</th><th scope="col" class="n">gives</th></tr></thead>
        <tbody>${value.latents.map(row => html`<tr><th scope="row">${link(row.latent)}</th><td>${row.letter.toUpperCase()}</td><td>${row.words.slice(0, 12).join(", ")}</td><td class="n">${percent(row.share)}</td></tr>`)}</tbody></table>`}<//></div>`}`;
}
