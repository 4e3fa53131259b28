// Anthropic's TypeScript SDK: messages, plain and streamed; the loop over tool calls is ours.

import Anthropic from "@anthropic-ai/sdk";

const [, way] = process.argv.slice(2);
const client = new Anthropic({
  baseURL: process.env.GATEWAY,
  apiKey: "unused",
  defaultHeaders: { "x-job-id": process.env.JOB, "x-agent-name": "weather-agent" },
});
const tools = [
  {
    name: "weather",
    description: "The weather in a city.",
    input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
];
const messages = [{ role: "user", content: "How is the weather in Berlin?" }];
const asked = [];
let pieces = 0;
let message;
do {
  const request = { model: "claude-opus-4.6", max_tokens: 200, messages, tools };
  if (way === "streamed") {
    const stream = client.messages.stream(request);
    stream.on("streamEvent", () => { pieces += 1; });
    message = await stream.finalMessage();
  } else {
    message = await client.messages.create(request);
  }
  messages.push({ role: "assistant", content: message.content });
  const results = message.content
    .filter((block) => block.type === "tool_use")
    .map((block) => {
      asked.push(block.input.city);
      return { type: "tool_result", tool_use_id: block.id, content: "18 degrees and quiet" };
    });
  if (results.length > 0) messages.push({ role: "user", content: results });
} while (message.stop_reason === "tool_use");
if (message.usage.input_tokens !== 90 || message.usage.output_tokens !== 12) {
  throw new Error("usage: " + JSON.stringify(message.usage));
}
const answer = message.content.map((block) => block.text ?? "").join("");
console.log(JSON.stringify({ answer, asked, pieces }));
