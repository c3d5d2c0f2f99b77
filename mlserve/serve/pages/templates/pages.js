"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const say = text => { document.getElementById("said").textContent = text; };
  document.documentElement.classList.add("scripted");

  // Outside https and this machine browsers have no clipboard; a selection can still be copied.
  const copy = async code => {
    if (navigator.clipboard) return navigator.clipboard.writeText(code.textContent);
    const range = document.createRange();
    range.selectNodeContents(code);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    if (!document.execCommand("copy")) throw new Error("nothing was copied");
  };
  for (const figure of all("figure.code")) {
    const caption = figure.querySelector("figcaption");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.ariaLabel = `Copy: ${caption.textContent.trim()}`;
    button.addEventListener("click", async () => {
      let said = "Copied";
      try { await copy(figure.querySelector("code")); } catch { said = "Select the text and copy it"; }
      button.textContent = said;
      say(said);
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    caption.append(button);
  }

  for (const input of all("[data-filters]")) {
    const rows = all(`${input.dataset.filters} tbody tr`);
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      let shown = 0;
      for (const row of rows) {
        row.hidden = !row.querySelector("th").textContent.toLowerCase().includes(wanted);
        shown += !row.hidden;
      }
      say(`${shown} of ${rows.length} models`);
    });
  }

  const written = text => { try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; } };
  for (const form of all(".try")) {
    const [path, body, status, answer] = [".path", ".body", ".status", ".answer"].map(name => form.querySelector(name));
    form.querySelector(".send").addEventListener("click", async () => {
      const headers = {};
      const key = document.getElementById("key");
      if (key && key.value) headers.authorization = `Bearer ${key.value}`;
      if (body) headers["content-type"] = form.dataset.media;
      status.value = "...";
      answer.hidden = true;
      const began = performance.now();
      try {
        const target = new URL(path.value, location.origin);
        if (target.origin !== location.origin) throw new Error("the path is of another server");
        const sent = { method: form.dataset.method, headers, body: body ? body.value : undefined, redirect: "error" };
        const reply = await fetch(target, sent);
        const text = await reply.text();
        status.value = `${reply.status} ${reply.statusText} in ${(performance.now() - began).toFixed(1)} ms`;
        answer.textContent = written(text).slice(0, 100000);
        answer.hidden = text === "";
      } catch (error) {
        status.value = `not sent: ${error.message}`;
      }
    });
  }

  const opened = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target instanceof HTMLDetailsElement) target.open = true;
  };
  addEventListener("hashchange", opened);
  opened();
})();
