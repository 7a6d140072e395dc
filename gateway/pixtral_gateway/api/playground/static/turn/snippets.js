// A turn's request as code, ready to run beside the pictures' files.

import { messagesOf } from "../conversation.js";
import { fieldsOf } from "../settings/settings.js";

// The fields that OpenAI's SDK has a parameter for.
const OPENAI = [
  ...["temperature", "top_p", "seed", "max_tokens", "n", "stop", "response_format", "tools"],
  ...["presence_penalty", "frequency_penalty"],
];

// These marks enclose a picture's number until the picture's data replaces it.
const OPEN = "\uE000";
const CLOSE = "\uE001";

/** The addresses that the code calls: `http`, with a slash at its end, and `grpc`, host:port. */
export function places() {
  const here = new URL(".", location.href);
  const port = document.querySelector("meta[name=grpc-port]").content;
  return {
    http: here.href,
    grpc: `${here.hostname}:${port === "0" ? "50051" : port}`,
    secure: here.protocol === "https:",
  };
}

export class Request {
  constructor({ turns, settings, column, model, needsKey }) {
    this.turns = turns;
    this.column = column;
    this.model = model;
    this.needsKey = needsKey;
    this.pictures = turns.flatMap((turn) => turn.pictures);
    this.settings = settings;
    this.fields = fieldsOf(settings);
  }

  /** The request, in which each picture is its number between marks. */
  get messages() {
    let number = 0;
    const show = () => `${OPEN}${number++}${CLOSE}`;
    return messagesOf(this.turns, this.settings.system, { column: this.column, show });
  }

  fill(text, show) {
    const marked = new RegExp(`${OPEN}(\\d+)${CLOSE}`, "g");
    return text.replace(marked, (mark, number) => {
      const picture = this.pictures[Number(number)];
      return picture ? show(picture) : mark;
    });
  }
}

export function curl(request, { http }) {
  const { messages, fields, model } = request;
  const body = { model, messages, ...fields, stream: true };
  const key = request.needsKey ? ` \\\n  -H "Authorization: Bearer $PIXTRAL_API_KEY"` : "";
  return `curl -N ${http}v1/chat/completions${key} \\
  -H 'Content-Type: application/json' -d @- <<JSON
${inShell(request, body, (picture) => `data:${picture.type};base64,`)}
JSON`;
}

export function grpc(request, { grpc: target, secure }) {
  const { settings, model } = request;
  const messages = request.messages.map(({ role, content, tool_calls: calls, tool_call_id: id }) => ({
    role: `ROLE_${role.toUpperCase()}`,
    content: [content].flat().map((part) => {
      if (typeof part === "string") return { text: part };
      return part.text === undefined ? { image: { data: part.image_url.url } } : { text: part.text };
    }),
    ...(calls && { toolCalls: calls.map((call) => ({ id: call.id, ...call.function })) }),
    ...(id && { toolCallId: id }),
  }));
  const { model: _, system, schema, tools, ...numbers } = settings;
  const sampling = Object.fromEntries(
    Object.entries(numbers).map(([name, value]) => [camel(name), value]),
  );
  if (schema) sampling.structuredOutput = { jsonSchema: JSON.stringify(schema) };
  const called = tools?.map(({ function: { name, description, parameters } }) => ({
    ...{ name, description },
    ...(parameters && { parameters: JSON.stringify(parameters) }),
  }));
  const body = { chat: { model, messages, sampling, ...(called && { tools: called }) } };
  const plain = secure ? "" : " --http2-prior-knowledge";
  const key = request.needsKey ? ` \\\n  -H "Authorization: Bearer $PIXTRAL_API_KEY"` : "";
  return `buf curl --protocol grpc${plain}${key} -d @- \\
  ${secure ? "https" : "http"}://${target}/pixtral.v1.ChatService/StreamComplete <<JSON
${inShell(request, body, () => "")}
JSON`;
}

export function openai(request, { http }) {
  const entries = Object.entries(request.fields);
  const own = entries.filter(([name]) => OPENAI.includes(name));
  const extra = entries.filter(([name]) => !OPENAI.includes(name));
  const lines = own.map(([name, value]) => `    ${name}=${literal(value)},\n`);
  if (extra.length) lines.push(`    extra_body=${literal(Object.fromEntries(extra))},\n`);
  const some = request.pictures.length > 0;
  const messages = indented(JSON.stringify(request.messages, null, 4), 4);
  const key = request.needsKey ? `os.environ["PIXTRAL_API_KEY"]` : `"any"`;
  const imports = [some && "import base64", request.needsKey && "import os"].filter(Boolean);
  if (some) imports.push("from pathlib import Path");
  const read = `
def data_url(path, kind):
    return f"data:{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"

`;
  return `${imports.map((line) => `${line}\n`).join("")}from openai import OpenAI

client = OpenAI(base_url="${http}v1", api_key=${key})
${some ? read : ""}
stream = client.chat.completions.create(
    model=${JSON.stringify(request.model)},
    messages=${inPython(request, messages, ({ name, type }) => `data_url(${JSON.stringify(name)}, "${type}")`)},
${lines.join("")}    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)`;
}

export function python(request, { grpc: target, secure }) {
  const messages = request.messages.map(({ content, ...rest }) => ({
    ...rest,
    content: Array.isArray(content) ? content.map((part) => part.text ?? part.image_url.url) : content,
  }));
  const { system, schema, ...options } = request.settings;
  if (schema) options.structured_output = { json_schema: schema };
  const lines = Object.entries(options).map(([name, value]) => `        ${name}=${literal(value)},\n`);
  const some = request.pictures.length > 0;
  const text = indented(JSON.stringify(messages, null, 4), 8);
  return `${some ? "from pathlib import Path\n\n" : ""}from pixtral_client import Client${secure ? ", Tls" : ""}

with Client("${target}"${secure ? ", tls=Tls()" : ""}) as client:
    stream = client.stream(
        ${inPython(request, text, ({ name }) => `Path(${JSON.stringify(name)})`)},
${lines.join("")}    )
    for delta in stream:
        print(delta.text, end="", flush=True)`;
}

function inShell(request, body, before) {
  const json = JSON.stringify(body, null, 2).replace(/[\\$`]/g, "\\$&");
  return request.fill(json, (picture) => {
    const name = picture.name.replaceAll("'", "'\\''");
    return `${before(picture)}$(base64 < '${name}' | tr -d '\\n')`;
  });
}

function inPython(request, json, show) {
  return request.fill(json.replace(new RegExp(`"(${OPEN}\\d+${CLOSE})"`, "g"), "$1"), show);
}

function indented(text, by) {
  return text.replaceAll("\n", `\n${" ".repeat(by)}`);
}

function camel(name) {
  return name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase());
}

/** A value of JSON in Python. */
function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  const items = Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each)}`);
  return `{${items.join(", ")}}`;
}
