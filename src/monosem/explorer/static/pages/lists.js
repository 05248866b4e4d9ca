// What the user keeps: stars, lists and notes, to a file and back.
import { html, Failed, Panel, useEffect, useState } from "ui";
import { Link } from "place";
import { keep, useNotes, STARS } from "notes";
import { said, useWords } from "page/dictionary";
import { visible } from "tokens";

export function Lists({ d }) {
  const held = useNotes(), [wrong, setWrong] = useState(null), [name, setName] = useState("");
  const names = Object.keys(held.lists).sort((a, b) => (b === STARS) - (a === STARS) || a.localeCompare(b));
  const save = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(held, null, 2)], { type: "application/json" }));
    link.download = "monosem-notes.json"; link.click(); URL.revokeObjectURL(link.href);
  };
  const open = async event => {
    const file = event.target.files[0];
    event.target.value = "";
    if (!file) return;
    try { await keep({ merge: JSON.parse(await file.text()) }); setWrong(null); }
    catch (error) { setWrong(`${file.name} is not JSON: ${error.message}`); }
  };
  return html`<div class="lead"><h1>Lists and notes</h1><p class="actions"><button type="button" onClick=${save}>Save as a file</button>
      <label class="button">Add from a file<input class="sr" type="file" accept="application/json,.json" onChange=${open} /></label></p><${Failed} words=${wrong} /></div>
    ${!names.length && html`<p class="soft wide">Nothing yet. A star on a latent's page (or the key <kbd>s</kbd>) puts it here; so do lists that you make, or draw with the lasso on the map.</p>`}
    <form class="row apart" onSubmit=${event => { event.preventDefault(); if (name.trim()) { keep({ put: [name.trim(), []] }); setName(""); } }}><input aria-label="Name of a new list" placeholder="a new list" maxlength="200" value=${name} onInput=${event => setName(event.target.value)} /><button type="submit">Make it</button></form>
    ${names.map(one => html`<${One} key=${one} name=${one} latents=${held.lists[one]} d=${d} />`)}
    ${held.notes.length > 0 && html`<${Panel} title="Notes" help="What you wrote about latents.">${held.notes.map(one => html`<p class="written"><${Link} page="latent" state=${{ d: one.dictionary, i: one.latent }}>${visible(one.dictionary)} ${one.latent}<//> ${visible(one.text).replace(/↵/g, "↵\n")}</p>`)}<//>`}`;
}

function One({ name, latents, d }) {
  const [typed, setTyped] = useState("");
  const own = latents.filter(([of]) => of === d).slice(0, 200), spoken = useWords(d);
  useEffect(() => spoken.view(own.map(([, i]) => i)), [latents, d]);
  const add = event => { event.preventDefault(); const i = Number(typed); if (typed !== "" && Number.isInteger(i) && i >= 0) { keep({ put: [name, [[d, i]]] }); setTyped(""); } };
  return html`<${Panel} title=${name === STARS ? "Starred" : visible(name)} help="Latents that belong together, in the order in which they came.">
    <ul class="plainlist">${latents.slice(0, 500).map(([of, i]) => html`<li key=${`${of} ${i}`}><span><${Link} page="latent" state=${{ d: of, i }}>${of === d ? i : `${visible(of)} ${i}`}<//> <span class="soft mono">${of === d ? said(spoken.of(i)) : ""}</span></span>
      <button type="button" class="plain" aria-label=${`Take latent ${i} out of ${name}`} onClick=${() => keep({ take: [name, [[of, i]]] })}>✕</button></li>`)}</ul>
    <form class="row" onSubmit=${add}><input type="number" min="0" placeholder="latent" aria-label=${`Latent for ${name}`} value=${typed} onInput=${event => setTyped(event.target.value)} /><button type="submit">Add</button>
      ${own.length > 0 && html`<a class="button" href=${`/api/export?d=${encodeURIComponent(d)}&i=${own.slice(0, 100).map(([, i]) => i).join(",")}`} download>Save its pages as a file</a>`}
      ${name !== STARS && html`<button type="button" onClick=${() => keep({ drop: name })}>Delete the list</button>`}</form><//>`;
}
