// A server of node: `lenient.js HOST PORT`. Paths as WHATWG's URL has them and decoded, hosts, roles and methods as apps
// read them. For path /secret, host secret.example, method DELETE and role admin it answers with the secret.
const http = require("node:http");

const secret = (request) => {
  const url = new URL(request.url, "http://web");
  let path = url.pathname;
  try {
    path = decodeURIComponent(path);
  } catch {
    // As it is.
  }
  path = new URL(path.replace(/^\/+/, "/"), "http://web").pathname;
  if (path === "/secret" || path.startsWith("/secret/")) return true;
  const hosts = [url.hostname, (request.headers.host || "").split(":")[0]];
  if (hosts.some((host) => host.replace(/\.$/, "").toLowerCase() === "secret.example")) return true;
  const roles = (request.headers["x-role"] || "").split(",").map((role) => role.trim().toLowerCase());
  return roles.includes("admin") || request.method === "DELETE";
};

http
  .createServer((request, response) => {
    let body = "public";
    try {
      if (secret(request)) body = "the-crown-jewels";
    } catch {
      // No URL.
    }
    request.resume();
    response.end(body);
  })
  .listen(Number(process.argv[3]), process.argv[2]);
