// GET over HTTPS through a proxy: node get.js PROXY HOST URL. Whom to trust is the environment's.
const http = require("node:http");
const https = require("node:https");
const tls = require("node:tls");

const [proxy, host, url] = process.argv.slice(2);

function fail(error) {
  console.error(error.code, error.message);
  process.exit(1);
}

const tunnel = http.request(proxy, { method: "CONNECT", path: `${host}:443` });
tunnel.on("error", fail);
tunnel.on("connect", (_, plain) => {
  const socket = tls.connect({ socket: plain, servername: host });
  socket.on("error", fail);
  socket.on("secureConnect", () => {
    const request = https.get(url, { createConnection: () => socket }, (answer) => {
      answer.pipe(process.stdout);
      answer.on("end", () => process.exit(0));
    });
    request.on("error", fail);
  });
});
tunnel.end();
