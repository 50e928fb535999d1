// Elements from data. Whatever clients sent comes in as text nodes and attribute values: there is no
// way from a string to markup in here, and the page's policy would refuse one.

// What turns the direction of a text would turn what stands beside a name around.
const TURNING = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const straight = (text) => text.replace(TURNING, "\ufffd");

/** Make an element: attributes (null leaves one out; `share` is 0 to 1), then children. */
export function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "share") made.style.setProperty("--share", String(value));
    else if (name === "color") made.style.setProperty("--color", value);
    else made.setAttribute(name, value === true ? "" : straight(String(value)));
  }
  made.append(...given(children));
  return made;
}

const given = (children) => children.flat()
  .filter((child) => child !== null && child !== undefined)
  .map((child) => (typeof child === "string" ? straight(child) : child));

/** Make the children of an element be these, and keep what is the same: focus, selection, motion. */
export function show(parent, ...children) {
  const wanted = given(children)
    .map((child) => (typeof child === "string" ? document.createTextNode(child) : child));
  const found = [...parent.childNodes];
  wanted.forEach((child, at) => {
    if (at >= found.length) parent.append(child);
    else become(found[at], child);
  });
  for (const left of found.slice(wanted.length)) left.remove();
}

function become(known, wanted) {
  if (known.nodeType !== wanted.nodeType || known.nodeName !== wanted.nodeName
    || known.id !== wanted.id) {
    known.replaceWith(wanted);
    return;
  }
  if (known.nodeType === Node.TEXT_NODE) {
    if (known.data !== wanted.data) known.data = wanted.data;
    return;
  }
  // The policy lets no style attribute be set, but what is in it by way of its properties.
  if (known.style.cssText !== wanted.style.cssText) known.style.cssText = wanted.style.cssText;
  for (const { name } of [...known.attributes]) {
    if (name !== "style" && name !== "open" && !wanted.hasAttribute(name)) {
      known.removeAttribute(name);
    }
  }
  for (const { name, value } of wanted.attributes) {
    if (name !== "style" && known.getAttribute(name) !== value) known.setAttribute(name, value);
  }
  show(known, ...wanted.childNodes);
}
