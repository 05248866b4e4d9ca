// Where a latent comes back: in other dictionaries, and in meta-SAEs. Asked for when it comes into view.
import { html, Failed, number, Panel, percent, Waiting, useEffect, useRef, useState } from "ui";
import { useData } from "server";
import { Link } from "place";
import { quoted } from "tokens";

const SHOWN = 3;

// whether an element has been in view
function useSeen() {
  const box = useRef(null), [seen, setSeen] = useState(false);
  useEffect(() => {
    const watch = new IntersectionObserver(found => { if (found.some(one => one.isIntersecting)) { setSeen(true); watch.disconnect(); } });
    watch.observe(box.current);
    return () => watch.disconnect();
  }, []);
  return [box, seen];
}

export function Kin({ d, i, home }) {
  const [box, seen] = useSeen();
  const near = useData(seen ? "family" : null, { d, i }), own = home.dictionaries.find(one => one.name === d);
  const metas = home.dictionaries.some(one => !one.error && one.meta_of && one.place === own?.place);
  const made = useData(seen && metas ? "made_of" : null, { d, i });
  const kin = near.old ? null : near.value, family = kin?.filter(one => one.family) || [], rest = kin?.filter(one => !one.family) || [];
  return html`<div class="kin" ref=${box}>
    <${Panel} title="Family" name="family" help="Dictionaries of the same place and of other widths: the latents whose decoder rows are nearest to this one's. ⇄: it is nearest there, and this one is nearest here. A latent that splits has several near ones in a wider dictionary.">
      <${Failed} words=${near.error} />${seen && !kin && !near.error && html`<${Waiting} words="looking in other dictionaries" />`}
      ${kin && !family.length && html`<p class="soft">No other width of this place is open: <code>monosem explore NARROW WIDE</code></p>`}
      ${family.map(one => html`<${Near} d=${d} i=${i} one=${one} title=${one.width < own.width ? "narrower" : "wider"} />`)}
      ${family.length > 0 && html`<p class="soft"><${Link} page="splitting" state=${{ d, i }}>its tree<//></p>`}<//>
    ${rest.length > 0 && html`<${Panel} title="In other dictionaries" name="kin" help="Dictionaries at other places that write into the same space: the latents whose decoder rows are nearest to this one's.">
      ${rest.map(one => html`<${Near} d=${d} i=${i} one=${one} />`)}<//>`}
    ${metas && html`<${Panel} title="Made of" name="made_of" help="Its decoder row as a sum of meta-latents, directions that it shares with other latents; the share of the row's squared length that each gives.">
      <${Failed} words=${made.error} />${seen && !made.value && !made.error && html`<${Waiting} />`}
      ${!made.old && made.value?.map(meta => html`<p class="soft">${meta.dictionary} explains <b>${percent(meta.explained)}</b> of its row</p>
        ${!meta.rows.length ? html`<p class="soft">no meta-latent fires at its row</p>` : html`<table class="effects"><thead><tr><th scope="col">meta-latent</th><th scope="col" class="n">gives</th></tr></thead><tbody>${meta.rows.slice(0, 8).map(row => html`<tr>
          <th scope="row"><${Link} page="latent" state=${{ d: meta.dictionary, i: row.meta }}>${row.meta}<//></th><td class="n"><span class="meter" style=${{ "--w": Math.max(row.given, 0) }}>${percent(row.given)}</span></td></tr>`)}</tbody></table>`}
        <p class="soft"><${Link} page="meta" state=${{ d, e: meta.dictionary, i }}>which latents share them<//></p>`)}<//>`}</div>`;
}

function Near({ d, i, one, title }) {
  return html`<h3><${Link} page="dictionary" state=${{ d: one.dictionary }}>${one.dictionary}<//> <span class="soft">${title ? `${title}, ` : ""}${number(one.width)} latents</span></h3>
    <table class="effects"><tbody>${one.rows.slice(0, SHOWN).map(row => html`<tr>
      <th scope="row"><${Link} page="compare" state=${{ d, a: i, e: one.dictionary, b: row.latent }}>${row.latent}<//>${row.back === i && html`${" "}<span title="nearest in both directions">⇄</span>`}${" "}<span class="soft mono">${row.label || (row.fires_on || []).map(quoted).join(" ")}</span></th><td class="n">${number(row.cosine, 2)}</td></tr>`)}</tbody></table>`;
}
