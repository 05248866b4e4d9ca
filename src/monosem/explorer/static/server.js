// Requests to the server: plain data, one line where something is wrong.
import { shared, useEffect, useState } from "ui";

async function answered(response) {
  if (response.ok) return response.json();
  const text = await response.text();
  let words = text;
  try { words = JSON.parse(text).error; } catch { /* not JSON: the text is what is wrong */ }
  throw new Error(words || `the server said ${response.status}`);
}

const query = values => new URLSearchParams(Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== ""));

export const get = async (name, values = {}) => answered(await fetch(`/api/${name}?${query(values)}`));
export const send = async file => answered(await fetch(`/api/texts?${query({ name: file.name })}`, { method: "POST", body: file }));
export const post = async (name, values = {}) => answered(await fetch(`/api/${name}`, {
  method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(values),
}));

const KEPT = 60, kept = new Map(), version = shared(0);
export const forgets = [() => kept.clear()];

// what was read is no longer true: pages that show it ask again
export function forget() {
  for (const clear of forgets) clear();
  version.set(version.get() + 1);
}

export function cached(name, values) {
  const key = `${name}?${query(values)}`;
  if (!kept.has(key)) {
    kept.set(key, get(name, values).catch(error => { kept.delete(key); throw error; }));
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  }
  return kept.get(key);
}

// what a request gives: {value, error}; neither while it is under way. A null name asks for nothing.
export function useData(name, values = {}) {
  const now = version.use(), key = name && `${now} ${name}?${query(values)}`;
  const [held, setHeld] = useState({ key: null });
  useEffect(() => {
    if (!name) return undefined;
    let wanted = true;
    cached(name, values).then(value => wanted && setHeld({ key, value }), error => wanted && setHeld({ key, error: error.message }));
    return () => { wanted = false; };
  }, [key]);
  return held.key === key ? held : { value: held.value, old: true };
}

export const floats = coded => new Float32Array(Uint8Array.from(atob(coded), c => c.charCodeAt(0)).buffer);
