// An agent that does one effect with the TypeScript client: node effect_client.mjs URL JOB ATTEMPT HOW
import { appendFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [url, job, attempt, how, vendor] = process.argv.slice(2);
const { NotDone, Overnight } = await import(pathToFileURL(process.env.CLIENT).href);
const overnight = new Overnight({ url, job, attempt: Number(attempt), timeoutMs: 3000 });
try {
  const result = await overnight.effect("refund", { payment: "pay_7" }, "pay_7", async (call) => {
    if (how === "refuse") throw new NotDone("no funds");
    appendFileSync(vendor, call.vendorKey + "\n");
    if (how === "hang") {
      console.log("called");
      await new Promise((resolve) => setTimeout(resolve, 60_000));
    }
    if (how === "slow") await new Promise((resolve) => setTimeout(resolve, 4_000));
    if (how === "fail") throw new Error("no answer in 20 s");
    return { providerId: "re_81", result: { id: "re_81" } };
  });
  console.log(JSON.stringify({ result }));
} catch (error) {
  console.log(JSON.stringify({ code: error.code, message: error.message }));
}
