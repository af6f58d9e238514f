import { Batcher } from "./batcher.ts";
import { type FromWorker, type ToWorker, toWire } from "./protocol.ts";

/** The engine's Worker: everything that blocks happens here, so that the host's event loop never does. */

declare const self: Worker & { close(): void };

let batcher: Batcher | undefined;

function send(message: FromWorker): void {
  self.postMessage(message);
}

// Installed before anything is awaited: a message that finds no handler is lost.
self.onmessage = (event: MessageEvent<ToWorker>) => {
  const message = event.data;
  switch (message.type) {
    case "load":
      void load(message);
      break;
    case "generate": {
      const { id, request } = message;
      batcher?.add(id, request, {
        tokens: (tokens, text) => send({ type: "tokens", id, tokens, text }),
        end: (finish, text, stats) => send({ type: "end", id, finish, text, stats }),
        error: (error) => send({ type: "error", id, error: toWire(error) }),
      });
      break;
    }
    case "abort":
      batcher?.abort(message.id);
      break;
    case "close":
      void close();
      break;
  }
};

async function load(message: Extract<ToWorker, { type: "load" }>): Promise<void> {
  try {
    batcher = await Batcher.load(message.options);
    const { device, target, memoryPlan } = batcher.runner;
    send({
      type: "ready",
      info: {
        device: device.label,
        threads: device.info.threads,
        vocabSize: target.config.vocabSize,
        maxTokens: batcher.maxTokens,
        memoryBytes: memoryPlan.totalBytes,
      },
    });
  } catch (error) {
    send({ type: "failed", error: toWire(error) });
  }
}

async function close(): Promise<void> {
  try {
    await batcher?.close();
  } catch {
    // A lost GPU cannot be closed in order; whoever generated on it has heard why.
  }
  send({ type: "closed" });
  self.onmessage = null;
  self.close();
}
