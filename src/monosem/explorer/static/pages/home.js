import { html, number, Panel, Help } from "ui";
import { Link } from "place";

const brief = count => count.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });

export function Home({ home }) {
  const usable = home.dictionaries.filter(one => !one.error), broken = home.dictionaries.filter(one => one.error);
  return html`<div class="lead"><h1>What does a latent do?</h1>
      <p class="soft wide">Choose a dictionary, look through its latents, and see on which text each one fires, what it writes, and what
      the model says when it is turned up. Everything stays on this machine.</p></div>
    <h2 class="sr">Dictionaries</h2>
    <div class="cards">${usable.map(one => html`<${Link} page="dictionary" state=${{ d: one.name }} class="card">
      <span class="name">${one.name}</span>
      <span class="soft">${number(one.width)} latents · ${one.kind}${one.writes && one.writes !== one.site ? ` · ${one.site} to ${one.writes}` : ""}</span>
      <span class="soft">${one.tokens ? `${brief(one.tokens)} tokens read` : "no text read yet: weights alone"}${one.index === "made" ? " · index made here" : one.index === "named" ? " · index named at the start" : ""}${one.labels ? ` · ${one.labels} explained` : ""}</span>
      ${one.index_error && html`<span class="failed">${one.index_error}</span>`}
    <//>`)}</div>
    ${broken.map(one => html`<p class="failed">${one.name}: ${one.error}</p>`)}
    <${Panel} title="A dictionary of your own" help="The pass over a corpus finds where each latent fires; without it, pages show what the weights alone say.">
      <p class="soft">Train one and read a corpus, then open it here:</p>
      <pre tabindex="0" aria-label="Commands">monosem train --model smollm2 --site resid_post.15 --text ./books \\
    --width 4608 --k 32 --tokens 5000000 --out runs/sae
monosem latents index runs/sae/dictionary --text ./books
monosem explore runs/sae/dictionary</pre><//>
    <${Panel} title="Keys" help="They work on every page, outside of text fields.">
      <dl class="keys"><div><dt><kbd>/</kbd></dt><dd>find</dd></div><div><dt><kbd>j</kbd> <kbd>k</kbd></dt><dd>next and previous latent</dd></div>
      <div><dt><kbd>r</kbd></dt><dd>a random latent</dd></div><div><dt><kbd>s</kbd></dt><dd>star</dd></div><div><dt><kbd>e</kbd></dt><dd>write a note</dd></div><div><dt><kbd>?</kbd></dt><dd>what each panel is</dd></div></dl><//>
    <p class="soft">monosem ${home.version} · <${Link} page="public">read a latent of Neuronpedia<//>${home.files.length > 0 && html` · <${Link} page="files">files of other tools<//>`}${home.reports.length > 0 && html` · <${Link} page="reports">${home.reports.length} ${home.reports.length === 1 ? "report" : "reports"}<//>`}</p>`;
}
