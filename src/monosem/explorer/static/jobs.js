// Work with the model: a job is queued on the server, tells of its progress, and can be cancelled.
import { html, useEffect, useRef, useState } from "ui";
import { post } from "server";

export const ENDED = ["done", "failed", "cancelled"];

// one job at a time for this part of a page: {job, run, cancel}; job: {id, state, words, sides, result, error}
export function useJob() {
  const [job, setJob] = useState(null);
  const source = useRef(null);
  const running = useRef(null); // its id; a page that is left wants no answer any more
  running.current = job?.id && !ENDED.includes(job.state) ? job.id : null;
  useEffect(() => {
    const leave = () => {
      source.current?.close();
      if (running.current) fetch(`/api/jobs/${running.current}/cancel`, { method: "POST", keepalive: true }).catch(() => {});
    };
    addEventListener("pagehide", leave);
    return () => { removeEventListener("pagehide", leave); leave(); };
  }, []);
  const run = async (kind, ask) => {
    source.current?.close();
    if (job && !ENDED.includes(job.state)) post(`jobs/${job.id}/cancel`).catch(() => {});
    setJob({ state: "waiting", words: "waiting for the model", sides: {}, asked: ask });
    let id;
    try { ({ id } = await post("jobs", { kind, ...ask })); }
    catch (error) { setJob({ state: "failed", error: error.message, sides: {} }); return; }
    setJob(held => ({ ...held, id }));
    const events = source.current = new EventSource(`/api/jobs/${id}/events`);
    events.onmessage = message => {
      const event = JSON.parse(message.data);
      if (ENDED.includes(event.type)) events.close();
      setJob(held => after(held, event));
    };
    events.onerror = () => { events.close(); setJob(held => ({ ...held, state: "failed", error: "the server is gone; start it again" })); };
  };
  const cancel = () => job?.id && post(`jobs/${job.id}/cancel`).catch(() => {});
  return { job, run, cancel, busy: Boolean(job) && !ENDED.includes(job.state) };
}

function after(job, event) {
  if (event.type === "progress") return { ...job, state: "running", words: event.words };
  if (event.type === "tokens") return { ...job, state: "running", sides: { ...job.sides, [event.side]: event.texts } };
  if (event.type === "done") return { ...job, state: "done", result: event.result };
  return { ...job, state: event.type, error: event.words };
}

export function Progress({ job, cancel }) {
  if (!job || job.state === "done") return null;
  if (job.state === "cancelled") return html`<p class="soft" role="status">cancelled</p>`;
  if (job.state === "failed") return html`<p class="failed" role="alert">${job.error}</p>`;
  return html`<p class="waiting" role="status"><span class="dots" aria-hidden="true"></span>${job.words}
    <button type="button" onClick=${cancel}>Cancel</button></p>`;
}
