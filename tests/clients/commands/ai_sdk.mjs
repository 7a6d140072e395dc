// The AI SDK by each of its providers that speaks to a server of this kind: prints a JSON object of
// what each question came to. It is read from standard input, where its packages are.
import { createMistral } from "@ai-sdk/mistral";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { readFileSync } from "node:fs";
import { z } from "zod";

const { MODEL, PICTURE, QUESTION, OPENAI_BASE_URL: baseURL } = process.env;
const image = readFileSync(PICTURE);
const apiKey = "any";
const openai = createOpenAI({ baseURL, apiKey });
const models = {
  "openai, by default": openai(MODEL),
  "openai.chat": openai.chat(MODEL),
  "openai-compatible": createOpenAICompatible({
    name: "pixtral", baseURL, apiKey, supportsStructuredOutputs: true,
  })(MODEL),
  mistral: createMistral({ baseURL, apiKey })(MODEL),
};
const shown = [
  { role: "user", content: [{ type: "image", image }, { type: "text", text: QUESTION }] },
];
const schema = z.object({ kind: z.enum(["square", "circle"]), isLarge: z.boolean() });
const settings = { temperature: 0, maxOutputTokens: 200, maxRetries: 0 };

const questions = {
  whole: async (model) => {
    const { text, usage } = await generateText({ model, messages: shown, ...settings });
    return { text, hasUsage: usage.outputTokens > 0 };
  },
  stream: async (model) => {
    const result = streamText({ model, messages: shown, ...settings });
    let text = "";
    for await (const piece of result.textStream) text += piece;
    return { text, hasUsage: (await result.usage).outputTokens > 0 };
  },
  "two messages of the user": async (model) => {
    const [{ content }] = shown;
    const messages = content.map((part) => ({ role: "user", content: [part] }));
    return { text: (await generateText({ model, messages, ...settings })).text };
  },
  tool: async (model) => {
    const seen = [];
    const look = tool({
      description: "Looks.",
      inputSchema: schema,
      execute: async (input) => { seen.push(input); return "3 shapes"; },
    });
    const { steps } = await generateText({
      model, messages: shown, tools: { look }, stopWhen: stepCountIs(2), ...settings,
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "auto" : "required" }),
      // The small model would go on calling for as long as it may.
      providerOptions: {
        openai: { parallelToolCalls: false },
        mistral: { parallelToolCalls: false },
        pixtral: { parallel_tool_calls: false },
      },
    });
    return { isOfSchema: seen.length > 0 && seen.every((one) => schema.safeParse(one).success),
             text: steps.at(-1).text, steps: steps.length };
  },
  output: async (model) => {
    const { output } = await generateText({
      model, messages: shown, output: Output.object({ schema }), ...settings,
    });
    return { isOfSchema: schema.safeParse(output).success };
  },
};

const told = {};
for (const [name, model] of Object.entries(models)) {
  told[name] = {};
  for (const [question, ask] of Object.entries(questions)) {
    told[name][question] = await ask(model).catch((error) => ({ error: `${error}`.slice(0, 500) }));
  }
}
console.log(JSON.stringify(told));
