// The same as ask_openai.py, on OpenAI's package for Node.
import OpenAI from "openai";

for (const url of process.argv.slice(2)) {
  const options = { apiKey: "sk-own", maxRetries: 0, timeout: 20000 };
  const client = new OpenAI(url ? { ...options, baseURL: url } : options);
  const question = { model: "small", messages: [{ role: "user", content: "Hello there" }] };
  const whole = await client.chat.completions.create(question);
  console.log(JSON.stringify({ model: whole.model, text: whole.choices[0].message.content }));
  let model, text = "";
  for await (const chunk of await client.chat.completions.create({ ...question, stream: true })) {
    model ??= chunk.model;
    text += chunk.choices[0]?.delta.content ?? "";
  }
  console.log(JSON.stringify({ model, text }));
}
