// Where an answer's time went, and its prompt's tokens: one line, and two bars that it opens to.

import { duration, grouped, icon, make } from "../dom.js";

/** `longest`, in seconds, is as wide as the page: answers of a conversation compare at a glance. */
export function timeline(answer, longest) {
  const { timings, images } = answer.pixtral;
  const { usage } = answer;
  const parts = phases(timings, images);
  const total = timings.total_seconds;
  const bar = make("div", { className: "bar", "aria-hidden": "true" });
  for (const { kind, seconds } of parts) {
    if (seconds) bar.append(segment(kind, seconds / total));
  }
  bar.style.width = `${Math.max(4, (100 * total) / longest)}%`;
  return make(
    "figure",
    { className: "timeline" },
    caption(timings, usage),
    bar,
    make("dl", { className: "legend" }, ...parts.filter((part) => part.label).map(entry)),
    ...prompt(usage),
  );
}

/** An answer's times, in one line. */
export function receipt({ usage, pixtral: { timings, images } }) {
  const cached = images.filter((image) => image.cached).length;
  const told = [
    make("span", {}, make("strong", {}, duration(timings.time_to_first_token_seconds)), " to the first token"),
    make("span", { className: "more" }, count(usage.completion_tokens, "token")),
    cached ? make("span", { className: "badge cached" }, icon("check"), `${count(cached, "picture")} cached`) : null,
  ];
  return [icon("clock"), ...told.filter(Boolean), icon("open")];
}

function phases(timings, images) {
  const { queue_seconds: queue, encode_seconds: encode, total_seconds: total } = timings;
  const first = timings.time_to_first_token_seconds;
  const cached = images.filter((image) => image.cached).length;
  const found = [];
  if (images.length) {
    const some = cached && cached < images.length ? `, ${cached} cached` : "";
    if (cached < images.length) found.push({ kind: "encode", label: `Encode${some}`, seconds: encode });
    else found.push({ kind: "encode", label: "Encode", seconds: 0, badge: "cached" });
  }
  found.push({ kind: "queue", label: "Queue", seconds: queue });
  const rest = Math.max(0, first - queue - (cached < images.length ? encode : 0));
  found.push({ kind: "first", label: "Read and prefill", seconds: rest });
  found.push({ kind: "generate", label: "Generate", seconds: Math.max(0, total - first) });
  return found;
}

function segment(kind, share) {
  const element = make("span", { className: kind });
  element.style.flexGrow = share;
  return element;
}

function entry({ kind, label, seconds, badge }) {
  return make(
    "div",
    { className: kind },
    make("dt", {}, label),
    badge
      ? make("dd", { className: "badge" }, icon("check"), badge)
      : make("dd", {}, duration(seconds)),
  );
}

function caption(timings, usage) {
  const first = timings.time_to_first_token_seconds;
  const pace = (usage.completion_tokens - 1) / (timings.total_seconds - first);
  return make(
    "figcaption",
    {},
    make("span", {}, make("strong", {}, duration(first)), "to the first token"),
    make("span", {}, `${duration(timings.total_seconds)} in all`),
    make("span", {}, count(usage.completion_tokens, "token")),
    pace > 0 && Number.isFinite(pace)
      ? make("span", {}, `${pace >= 10 ? Math.round(pace) : pace.toFixed(1)} tokens/s`)
      : null,
  );
}

function prompt(usage) {
  const all = usage.prompt_tokens;
  const { image_tokens: picture, cached_tokens: cached } = usage.prompt_tokens_details;
  const text = all - picture;
  const bar = make("div", { className: "bar tokens", "aria-hidden": "true" });
  if (picture) bar.append(segment("picture-tokens", picture / all));
  bar.append(segment("text-tokens", text / all));
  if (cached) {
    const known = make("span", { className: "known" });
    known.style.width = `${(100 * cached) / all}%`;
    bar.append(known);
  }
  const told = [
    ["prompt", "Prompt", count(all, "token")],
    ["picture-tokens", "Picture", grouped(picture)],
    ["text-tokens", "Text", grouped(text)],
    ["known-tokens", "Cached", grouped(cached)],
  ].filter(([, , value]) => value !== "0");
  return [
    bar,
    make(
      "dl",
      { className: "legend" },
      ...told.map(([kind, label, value]) =>
        make("div", { className: kind }, make("dt", {}, label), make("dd", {}, value)),
      ),
    ),
  ];
}

function count(number, what) {
  return `${grouped(number)} ${what}${number === 1 ? "" : "s"}`;
}
