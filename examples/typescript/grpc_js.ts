// Asks about an image over gRPC with grpc-js, which reads the protos as they are: no code is
// generated.
//
//   npm install && npm run grpc-js [IMAGE [QUESTION]]
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { readFileSync } from "node:fs";
import { promisify } from "node:util";

const [image = "../../docs/demo/street.png", question = "How many shapes are there?"] =
  process.argv.slice(2);
const target = process.env.PIXTRAL_TARGET ?? "127.0.0.1:50051";
const protos = process.env.PIXTRAL_PROTOS ?? "../../protos";
const definition = loadSync("pixtral/v1/chat.proto", { includeDirs: [protos], enums: String });
// eslint-disable-next-line @typescript-eslint/no-explicit-any
const { ChatService } = (grpc.loadPackageDefinition(definition) as any).pixtral.v1;
const client = new ChatService(target, grpc.credentials.createInsecure());
const complete = promisify(client.complete.bind(client));

const { models } = await promisify(client.listModels.bind(client))({});
console.log("model:", models[0].name);

const messages = [
  { role: "ROLE_USER", content: [{ image: { data: readFileSync(image) } }, { text: question }] },
];
const chat = { messages, sampling: { temperature: 0 } };

const { choices, completion } = await complete({ chat });
console.log("whole:", choices[0].text);
console.log("tokens:", completion.usage.promptTokens, "and", completion.usage.completionTokens);

process.stdout.write("stream: ");
for await (const { delta } of client.streamComplete({ chat })) {
  if (delta?.text) process.stdout.write(delta.text);
}
console.log();

try {
  await complete({ chat: { messages, sampling: { temperature: -1 } } });
} catch (error) {
  console.log("refused:", (error as grpc.ServiceError).details);
}
client.close();
