// Asks about an image over gRPC with Connect, by code that is generated from the protos.
//
//   npm install && npm run generate && npm run connect [IMAGE [QUESTION]]
import { ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { readFileSync } from "node:fs";
import { ChatService, Role } from "./gen/pixtral/v1/chat_pb.ts";

const [image = "../../docs/demo/street.png", question = "How many shapes are there?"] =
  process.argv.slice(2);
const target = process.env.PIXTRAL_TARGET ?? "127.0.0.1:50051";
const client = createClient(ChatService, createGrpcTransport({ baseUrl: `http://${target}` }));

const { models } = await client.listModels({});
console.log("model:", models[0].name);

const messages = [
  {
    role: Role.USER,
    content: [
      {
        part: {
          case: "image" as const,
          value: { source: { case: "data" as const, value: readFileSync(image) } },
        },
      },
      { part: { case: "text" as const, value: question } },
    ],
  },
];
const chat = { messages, sampling: { temperature: 0 } };

const { choices, completion } = await client.complete({ chat });
console.log("whole:", choices[0].text);
console.log("tokens:", completion?.usage?.promptTokens, "and", completion?.usage?.completionTokens);

process.stdout.write("stream: ");
for await (const { event } of client.streamComplete({ chat })) {
  if (event.case === "delta") process.stdout.write(event.value.text);
}
console.log();

try {
  await client.complete({ chat: { messages, sampling: { temperature: -1 } } });
} catch (error) {
  console.log("refused:", ConnectError.from(error).rawMessage);
}
