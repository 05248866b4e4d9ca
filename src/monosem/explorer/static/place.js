// Where the user is: a page and its state, both in the address, so that links and the back button work.
import { html, shared } from "ui";

const read = () => ({ ...Object.fromEntries(new URLSearchParams(location.search)), page: location.pathname.slice(1) || "home" });
const place = shared(read());
addEventListener("popstate", () => place.set(read()));

export const usePlace = () => place.use();
export const here = () => place.get();

export function address(page, state = {}) {
  const text = new URLSearchParams(Object.entries(state).filter(([, value]) => value !== null && value !== undefined && value !== "")).toString();
  return `/${page === "home" ? "" : page}${text ? `?${text}` : ""}`;
}

export function go(page, state = {}) {
  history.pushState(null, "", address(page, state));
  scrollTo(0, 0);
  place.set(read());
}

// change some of the state of this page; small changes replace the entry of the history
export function change(values, keep = false) {
  const { page, ...state } = { ...here(), ...values };
  history[keep ? "pushState" : "replaceState"](null, "", address(page, state));
  place.set(read());
}

export function Link({ page, state, children, ...rest }) {
  const click = event => {
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
    event.preventDefault();
    go(page, state);
  };
  return html`<a href=${address(page, state)} onClick=${click} ...${rest}>${children}</a>`;
}
