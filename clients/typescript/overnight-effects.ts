/**
 * Effects over HTTP: a tool call that changes something outside is done once, also if this program is killed and started again.
 *
 *     const overnight = new Overnight({ url: "http://127.0.0.1:8700", apiKey: process.env.OVERNIGHT_API_KEY, job: "nightly" });
 *     const id = await overnight.effect("refund", { payment: "pay_7", usd: 40 }, "pay_7", async (call) => {
 *       const refund = await provider.refund(call.arguments, { idempotencyKey: call.vendorKey });
 *       return { providerId: refund.id, result: refund.id };
 *     });
 *
 * No packages: it needs `fetch`, as Node 20, Deno, Bun and browsers have it. Copy this file into your project.
 */

export interface Options {
  /** The URL of the gateway, without `/v1`. */
  url: string;
  apiKey?: string;
  /** The name of the job. Without one, each effect has a job of its own. */
  job?: string;
  /** The attempt of the job, from 1. A new attempt makes claims of earlier ones unknown. */
  attempt?: number;
  /** A name for this process: the same name receives a claim again whose response was lost. Default: a random one. */
  holder?: string;
  /** How long a claim lasts, in milliseconds. It is extended while the function runs. Default: 60,000. */
  timeoutMs?: number;
  /** How long a request is repeated while the gateway gives no answer, in milliseconds. Default: 60,000. */
  patienceMs?: number;
}

export interface Call<A> {
  /** The arguments to use: a person may have edited them. */
  arguments: A;
  /** The idempotency key for the provider. */
  vendorKey: string;
  effectId: string;
  jobId: string;
  attempt: number;
}

export interface Outcome<R> {
  /** The id at the provider. */
  providerId?: string;
  result: R;
}

/** Throw it in the function to state that nothing was done. Any other error makes the outcome unknown. */
export class NotDone extends Error {}

/** The effect was not done, or its outcome is not known. `code` is that of the reference of errors. */
export class EffectStopped extends Error {
  readonly code: string;
  readonly effectId?: string;
  readonly reviewId?: string;

  constructor(message: string, code: string, effectId?: string, reviewId?: string) {
    super(message);
    this.code = code;
    this.effectId = effectId;
    this.reviewId = reviewId;
  }
}

type Body = Record<string, unknown>;
interface Answer {
  status: number;
  body: Body;
  retryAfterMs: number;
}
const RETRIED = new Set([429, 502, 503, 504]);
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

export class Overnight {
  private readonly options: Required<Pick<Options, "url" | "holder" | "timeoutMs" | "patienceMs">> & Options;

  constructor(options: Options) {
    const url = options.url.replace(/\/+$/, "").replace(/\/v1$/, "");
    this.options = { holder: `ts-${crypto.randomUUID()}`, timeoutMs: 60_000, patienceMs: 60_000, ...options, url };
  }

  /**
   * Do an effect once. `key` names it: a repeat under the same key receives the result of the first call.
   *
   * Throws EffectStopped with the code `waiting` (an approval), `unknown`, `rejected`, `denied`, `not_done`, `budget` and others.
   */
  async effect<A, R>(tool: string, args: A, key: string, run: (call: Call<A>) => Promise<Outcome<R>>): Promise<R> {
    for (;;) {
      const answer = await this.claim(tool, args, key);
      if (answer.status === 201) return await this.execute(tool, args, key, answer.body, run);
      if (answer.status === 200) return answer.body.result as R;
      if (answer.body.code !== "in_progress") throw stopped(tool, answer);
      await pause(answer.retryAfterMs || 1_000);
    }
  }

  private claim(tool: string, args: unknown, key: string): Promise<Answer> {
    const body = { tool, arguments: args, timeout_ms: this.options.timeoutMs, holder: this.options.holder };
    return this.send("/api/v1/effects", body, { "idempotency-key": key });
  }

  private async execute<A, R>(
    tool: string,
    args: A,
    key: string,
    claimed: Body,
    run: (call: Call<A>) => Promise<Outcome<R>>,
  ): Promise<R> {
    let claimId = claimed.claim_id;
    let extending: Promise<unknown> = Promise.resolve();
    const extend = setInterval(() => {
      extending = this.claim(tool, args, key).then(
        (answer) => (claimId = answer.status === 201 ? answer.body.claim_id : claimId),
        () => undefined,
      );
    }, this.options.timeoutMs / 3);
    // An extension that arrived after the report of a failure would claim the effect again.
    const endExtension = (): Promise<unknown> => {
      clearInterval(extend);
      return extending;
    };
    const call: Call<A> = {
      arguments: claimed.arguments as A,
      vendorKey: String(claimed.vendor_key),
      effectId: String(claimed.effect_id),
      jobId: String(claimed.job_id),
      attempt: Number(claimed.attempt),
    };
    const report = async (kind: string, body: Body): Promise<void> => {
      const answer = await this.send(`/api/v1/effects/${call.effectId}/${kind}`, { claim_id: claimId, ...body });
      if (answer.status !== 200) throw stopped(tool, answer);
    };
    let done: Outcome<R>;
    try {
      done = await run(call);
    } catch (error) {
      await endExtension();
      const why = String(error instanceof Error ? error.message : error).slice(0, 500);
      if (error instanceof NotDone) {
        await report("fail", { error: { class: "not_done", message: why } });
        throw new EffectStopped(`effect ${tool} was not done: ${why}`, "not_done", call.effectId);
      }
      await report("unknown", { why });
      throw new EffectStopped(`the outcome of effect ${tool} is unknown: ${why}`, "unknown", call.effectId);
    }
    await endExtension();
    await report("commit", { provider_id: done.providerId, result: done.result ?? null });
    return done.result;
  }

  /** Send a POST. It is repeated if the gateway gave no answer: a claim of the same holder and a report may be. */
  private async send(path: string, body: Body, headers: Record<string, string> = {}): Promise<Answer> {
    const { url, apiKey, job, attempt, patienceMs } = this.options;
    const sent: Record<string, string> = { "content-type": "application/json", ...headers };
    if (apiKey !== undefined) sent.authorization = `Bearer ${apiKey}`;
    if (job !== undefined) sent["x-job-id"] = job;
    if (attempt !== undefined) sent["x-job-attempt"] = String(attempt);
    const until = Date.now() + patienceMs;
    for (let wait = 100; ; wait = Math.min(2 * wait, 5_000)) {
      try {
        const signal = AbortSignal.timeout(60_000);
        const response = await fetch(url + path, { method: "POST", headers: sent, body: JSON.stringify(body), redirect: "error", signal });
        const retryAfterMs = 1_000 * Number(response.headers.get("retry-after") ?? 0);
        const answer = { status: response.status, body: (await response.json()) as Body, retryAfterMs };
        if (!RETRIED.has(answer.status) || Date.now() >= until) return answer;
        wait = Math.max(wait, Math.min(retryAfterMs, 5_000));
      } catch (error) {
        if (Date.now() >= until) throw error;
      }
      await pause(wait);
    }
  }
}

function stopped(tool: string, { status, body }: Answer): EffectStopped {
  const code = status === 202 ? "waiting" : String(body.code ?? status);
  const message = status === 202 ? `effect ${tool} waits for approval` : `effect ${tool}: ${String(body.detail ?? status)}`;
  return new EffectStopped(message, code, body.effect_id as string | undefined, body.review_id as string | undefined);
}
