// A table of any length: only the rows in view exist.
import { html, useEffect, useLayoutEffect, useRef, useState } from "ui";

const ROW = 36, MARGIN = 8;

// columns: [{name, title, help, n}]; order: row numbers; cells(row) -> one cell a column
export function Grid({ label, columns, order, sort, down, onSort, cells, onOpen, onView, height }) {
  const box = useRef(null);
  const [first, setFirst] = useState(0);
  const shown = Math.ceil(height / ROW) + 2 * MARGIN;
  const from = Math.max(Math.min(first - MARGIN, order.length - shown), 0), to = Math.min(from + shown, order.length);
  useLayoutEffect(() => { if (box.current) box.current.scrollTop = 0; setFirst(0); }, [order]);
  useEffect(() => { onView?.(Array.from(order.slice(from, to))); }, [order, from, to]);
  const gap = count => count > 0 && html`<tr aria-hidden="true" class="gap"><td colspan=${columns.length} style=${{ height: `${count * ROW}px` }}></td></tr>`;
  return html`<div class="grid" ref=${box} tabindex="0" role="region" aria-label=${label} style=${{ height: `${height}px` }}
      onScroll=${event => setFirst(Math.floor(event.currentTarget.scrollTop / ROW))}>
    <table aria-rowcount=${order.length + 1}>
      <thead><tr>${columns.map(column => html`<th scope="col" class=${column.n ? "n" : ""}
        aria-sort=${sort === column.name ? (down ? "descending" : "ascending") : undefined}>
        ${column.plain ? column.title : html`<button type="button" title=${column.help} onClick=${() => onSort(column.name)}>${column.title}<span
          aria-hidden="true">${sort === column.name ? (down ? " ↓" : " ↑") : ""}</span></button>`}</th>`)}</tr></thead>
      <tbody>${gap(from)}
        ${Array.from(order.slice(from, to)).map((row, i) => html`<tr key=${row} aria-rowindex=${from + i + 2} onClick=${event => event.target.closest("a,button") || onOpen(row)}>
          ${cells(row).map((cell, c) => html`<td class=${columns[c].n ? "n" : columns[c].wide ? "words" : ""}>${cell}</td>`)}</tr>`)}
        ${gap(order.length - to)}</tbody>
    </table></div>`;
}
