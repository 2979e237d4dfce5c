// A fleet to look at: a private Redis that can be cut, three instances of the binary on a database of their own, and load.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { connect, createServer } from "node:net";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

export const ADMIN = "the admin of this test has this key, and nobody else";
const root = new URL("../../..", import.meta.url).pathname;
const binary = join(process.env.CARGO_TARGET_DIR ?? join(root, "target"), "debug/perto-chat");
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  return port;
}

async function run(args, env) {
  const child = spawn(binary, args, { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "inherit"] });
  let said = "";
  child.stdout.on("data", (data) => (said += data));
  const [status] = await once(child, "exit");
  if (status !== 0) throw new Error(`perto ${args.join(" ")} ended with ${status}`);
  return said.trim();
}

export class Fleet {
  children = [];
  loading = true;

  static async start(names = ["ada", "bea", "cyd"]) {
    const fleet = new Fleet();
    fleet.folder = mkdtempSync(join(tmpdir(), "perto-dashboard-"));
    fleet.port = await freePort();
    fleet.env = { REDIS_URL: `redis://127.0.0.1:${fleet.port}` };
    try {
      await fleet.returnRedis();
      await run(["migrate"], fleet.env);
      await run(["seed", "--companies", "20", "--users", "400", "--contacts", "4000", "--messages", "20000"], fleet.env);
      fleet.instances = await Promise.all(names.map((name) => fleet.serve(name)));
    } catch (error) {
      await fleet.end();
      throw error;
    }
    return fleet;
  }

  async serve(name, args = ["--admin-key", ADMIN], port = 0) {
    const serve = ["serve", "--listen", `127.0.0.1:${port}`, "--instance", name, "--rate-limit", "0", ...args];
    const env = { RUST_LOG: "error", ...process.env, ...this.env };
    const child = spawn(binary, serve, { env, stdio: ["ignore", "pipe", "inherit"] });
    this.children.push(child);
    for await (const line of createInterface(child.stdout)) {
      const url = line.match(/serves on (http:\S+)\/$/)?.[1];
      if (url) return { name, url, child };
    }
    throw new Error(`${name} did not start`);
  }

  async cutRedis() {
    this.redis.kill("SIGKILL");
    await once(this.redis, "exit");
  }

  async returnRedis() {
    const args = ["--port", this.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", this.folder];
    this.redis = spawn(process.env.PERTO_REDIS_SERVER ?? "redis-server", args.map(String), { stdio: "ignore" });
    for (let left = 100; left > 0; left -= 1) {
      const there = await new Promise((resolve) => {
        const socket = connect(this.port, "127.0.0.1", () => (socket.destroy(), resolve(true)));
        socket.on("error", () => resolve(false));
      });
      if (there) return;
      await sleep(50);
    }
    throw new Error("Redis did not start");
  }

  ask(instance, method, path, body) {
    const headers = { authorization: `Bearer ${ADMIN}`, "content-type": "application/json", "perto-company": "1" };
    return fetch(instance.url + path, { method, headers, body: body && JSON.stringify(body) });
  }

  /** Reads and a few writes, until the end. */
  async load() {
    const below = (n) => Math.floor(Math.random() ** 2 * n);
    const one = async (worker) => {
      for (let turn = 0; this.loading; turn += 1) {
        const instance = this.instances[(worker + turn) % this.instances.length];
        const company = 1 + below(20);
        const paths = [
          `/api/v1/companies/${company}`,
          `/api/v1/users/${1 + below(400)}`,
          `/api/v1/companies/1/contacts/${20 * (1 + below(190))}`,
          `/api/v1/chats/00000000-0000-4000-8000-${(1 + below(90)).toString(16).padStart(12, "0")}/messages?limit=3`,
        ];
        try {
          if (turn % 40 === 39) await (await this.ask(instance, "PATCH", `/api/v1/companies/${company}`, { name: `N${turn}` })).text();
          else await (await this.ask(instance, "GET", paths[below(4)])).text();
        } catch {
          await sleep(200);
        }
        await sleep(10);
      }
    };
    await Promise.all([0, 1, 2, 3].map(one));
  }

  async end() {
    this.loading = false;
    for (const child of this.children) child.kill("SIGTERM");
    await Promise.all(this.children.map((child) => child.exitCode ?? child.signalCode ?? once(child, "exit")));
    this.redis.kill("SIGKILL");
    rmSync(this.folder, { recursive: true, force: true });
  }
}
