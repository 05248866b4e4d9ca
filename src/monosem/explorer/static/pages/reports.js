// Reports of studies, robustness and others that lie in the folders named with --reports.
import { html, Failed } from "ui";
import { change } from "place";
import { Frame, themed } from "frame";

export function Reports({ place, home }) {
  const chosen = place.r === undefined ? home.reports[0] : home.reports.find(one => one.number === place.r);
  return html`<div class="lead"><h1>Reports</h1><p class="soft wide">What <code>monosem study</code>, <code>robustness</code>, <code>circuit</code> and others wrote.</p></div>
    ${!home.reports.length ? html`<p class="soft wide">No folder of reports is open. Name one, and the reports in it and one level below are listed here: <code>monosem explore --reports runs/</code></p>`
      : html`<ul class="plainlist">${home.reports.map(one => html`<li><button type="button" aria-pressed=${String(one === chosen)} onClick=${() => change({ r: one.number }, true)}>${one.path}</button> <a href=${themed(`/reports/${one.number}`)} target="_blank">on a page of its own</a></li>`)}</ul>`}
    ${place.r !== undefined && !chosen && html`<${Failed} words=${`There is no report ${place.r} here.`} />`}
    ${chosen && html`<${Frame} title=${chosen.path} src=${`/reports/${chosen.number}`} />`}`;
}
