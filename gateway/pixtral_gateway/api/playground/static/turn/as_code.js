// "As code": tabs, each a way to send the same request.

import { copyButton } from "../copy.js";
import { make } from "../dom.js";
import { Request, curl, grpc, openai, places, python } from "./snippets.js";

const WAYS = [
  ["curl", curl],
  ["OpenAI SDK", openai],
  ["Python client", python],
  ["gRPC", grpc],
];
let panels = 0;

/** @param {object} request its turns, settings, column, model and whether it needs a key */
export function asCode(request) {
  const body = make("div", { className: "code" });
  const id = `code-${++panels}`;
  const code = make("code", {});
  const shown = make(
    "pre",
    { id, role: "tabpanel", tabIndex: 0 },
    code,
  );
  const copy = copyButton(() => code.textContent, { of: "code", selects: code });
  const tabs = WAYS.map(([name, write], i) =>
    make(
      "button",
      {
        type: "button",
        id: `${id}-${i}`,
        role: "tab",
        "aria-controls": id,
        onclick: () => choose(i),
        onkeydown: (event) => move(event, i),
      },
      name,
    ),
  );

  function choose(i) {
    tabs.forEach((tab, j) => {
      tab.setAttribute("aria-selected", String(i === j));
      tab.tabIndex = i === j ? 0 : -1;
    });
    shown.setAttribute("aria-labelledby", tabs[i].id);
    code.textContent = WAYS[i][1](new Request(request), places());
    shown.scrollTo(0, 0);
  }

  function move(event, i) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const to = (i + by + tabs.length) % tabs.length;
    choose(to);
    tabs[to].focus();
    event.preventDefault();
  }

  body.append(
    make(
      "div",
      { className: "head" },
      make("div", { className: "tabs", role: "tablist", "aria-label": "As code" }, ...tabs),
      copy,
    ),
    shown,
  );
  choose(0);
  return body;
}
