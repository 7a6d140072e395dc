// "As code": tabs, each a way to send the same request.

import { announce, icon, make } from "./dom.js";
import { Request, curl, grpc, openai, places, python } from "./snippets.js";

const WAYS = [
  ["curl", curl],
  ["OpenAI SDK", openai],
  ["Python client", python],
  ["gRPC", grpc],
];
let panels = 0;

/** Made once it is opened: `request` gives it then. */
export function codePanel(request) {
  const body = make("div", { className: "code" });
  const panel = make(
    "details",
    { className: "as-code" },
    make("summary", {}, icon("code"), make("span", {}, "As code")),
    body,
  );
  panel.addEventListener("toggle", () => {
    if (panel.open && !body.hasChildNodes()) fill(body, request());
  });
  return panel;
}

function fill(body, { turns, model, needsKey }) {
  const id = `code-${++panels}`;
  const code = make("code", {});
  const shown = make(
    "pre",
    { id, role: "tabpanel", tabIndex: 0 },
    code,
  );
  const copy = make(
    "button",
    { type: "button", className: "copy quiet", onclick: () => copied(copy, code) },
    icon("copy"),
    make("span", {}, "Copy"),
  );
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
    code.textContent = WAYS[i][1](new Request(turns, model, needsKey), places());
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
}

async function copied(button, code) {
  const [, label] = button.children;
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    // Without https there is no clipboard: select the text, for Ctrl-C.
    getSelection().selectAllChildren(code);
    label.textContent = "Selected";
    return;
  }
  button.firstChild.replaceWith(icon("check"));
  label.textContent = "Copied";
  announce("Copied");
  setTimeout(() => {
    button.firstChild.replaceWith(icon("copy"));
    label.textContent = "Copy";
  }, 1500);
}
