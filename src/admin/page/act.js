// Actions: a question first that says what will happen, then what became of it.

import { post } from "./api.js";
import { el, show } from "./dom.js";

/** Why the worker would refuse every action of whoever looks at this page; said by the worker. */
let why = null;

/** Buttons that are there already learn it too. */
export function mayNotAct(reason) {
  why = reason;
  for (const button of document.querySelectorAll("button[data-acts]")) bar(button);
}

function bar(button) {
  button.disabled = why !== null;
  if (why) button.setAttribute("title", why);
  else button.removeAttribute("title");
}

/** A button of an action that changes nothing, and so asks nothing. */
export function unasked(label, act) {
  const made = el("button", { type: "button", "data-acts": true, onclick: act }, label);
  bar(made);
  return made;
}

/** A button of an action. Where nothing may be done it says why instead. A question and a body may be made when they are needed. */
export function button(label, { question, does, path, body, after, isDangerous }) {
  const ask = async () => {
    try {
      const asked = typeof question === "function" ? await question() : question;
      if (!(await confirmed(asked, does, isDangerous))) return;
      tell("Asking the worker …", "");
      const { done } = await post(path, typeof body === "function" ? body() : body);
      tell(done ? `Done: ${done}` : "Done.", "good");
      after?.();
    } catch (failure) {
      tell(`Not done, or not known: ${failure.message}`, "bad");
    }
  };
  const made = el("button", { type: "button", "data-acts": true, class: isDangerous ? "danger" : null, onclick: ask }, label);
  bar(made);
  return made;
}

/** Asks; the answer is false by Escape and by default. */
function confirmed(question, does, isDangerous) {
  return new Promise((answer) => {
    const no = el("button", { value: "", autofocus: true }, "Cancel");
    const yes = el("button", { value: "yes", class: isDangerous ? "danger" : "primary" }, does);
    const dialog = el("dialog", { "aria-labelledby": "question" },
      el("form", { method: "dialog" },
        el("p", { id: "question" }, question),
        el("div", { class: "buttons" }, no, yes)));
    dialog.addEventListener("close", () => {
      dialog.remove();
      answer(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

function tell(text, mood) {
  const close = el("button", { type: "button", class: "plain", onclick: () => show(place) }, "Close");
  const place = document.getElementById("outcome");
  show(place, el("div", { class: `note ${mood}` }, el("p", null, text), close));
}
