// Vercel's AI SDK: chat, Responses and Anthropic messages, plain and streamed.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [form, way] = process.argv.slice(2);
const settings = {
  name: "overnight",
  baseURL: process.env.GATEWAY + "/v1",
  apiKey: "unused",
  headers: { "x-job-id": process.env.JOB, "x-agent-name": "weather-agent" },
};
const model = {
  chat: () => createOpenAICompatible({ ...settings, includeUsage: true })("gpt-5.4-mini"),
  responses: () => createOpenAI(settings).responses("gpt-5.4-mini"),
  messages: () => createAnthropic(settings)("claude-opus-4.6"),
}[form]();
const asked = [];
const call = {
  model,
  system: "Use the tool.",
  prompt: "How is the weather in Berlin?",
  stopWhen: stepCountIs(4),
  tools: {
    weather: tool({
      description: "The weather in a city.",
      inputSchema: z.object({ city: z.string() }),
      execute: async ({ city }) => {
        asked.push(city);
        return "18 degrees and quiet";
      },
    }),
  },
};
let answer = "";
let pieces = 0;
let usage;
if (way === "streamed") {
  const result = streamText({ ...call, onError: ({ error }) => { throw error; } });
  for await (const piece of result.textStream) {
    answer += piece;
    pieces += 1;
  }
  usage = await result.totalUsage;
} else {
  const result = await generateText(call);
  answer = result.text;
  usage = result.totalUsage;
}
if (usage.inputTokens !== 150 || usage.outputTokens !== 21) throw new Error("usage: " + JSON.stringify(usage));
console.log(JSON.stringify({ answer, asked, pieces }));
