"use strict";
// Brings the page up to date in place. It waits while somebody types, selects text or looks elsewhere; where the server
// does not answer it says so. Without it a browser loads pages anew by itself, except those with a form.
(() => {
  const RETRY_SECONDS = 5, ANSWER_SECONDS_MAX = 10;

  function isInUse() {
    const isTyped = [...document.querySelectorAll("form input, form textarea")].some(
      (one) => one.value !== one.defaultValue);
    const isInForm = document.activeElement !== null && document.activeElement.closest("form") !== null;
    return document.hidden || isTyped || isInForm || !document.getSelection().isCollapsed;
  }

  function put(next) {
    const focused = document.activeElement && document.activeElement.getAttribute("href");
    document.title = next.title;
    document.documentElement.dataset.refresh = next.documentElement.dataset.refresh || "";
    document.querySelector("header").replaceWith(next.querySelector("header"));
    document.querySelector("main").replaceWith(next.querySelector("main"));
    const again = focused && [...document.querySelectorAll("a[href]")].find(
      (link) => link.getAttribute("href") === focused);
    if (again) again.focus({ preventScroll: true });
  }

  async function look() {
    const stale = document.getElementById("stale");
    try {
      const answer = await fetch(location.href, { signal: AbortSignal.timeout(ANSWER_SECONDS_MAX * 1000) });
      if (answer.status === 401) { location.reload(); return; }
      if (!answer.ok) throw new Error(String(answer.status));
      const text = await answer.text();
      if (!isInUse()) put(new DOMParser().parseFromString(text, "text/html"));
      stale.hidden = true;
    } catch {
      stale.hidden = false;
    }
  }

  async function go() {
    const seconds = Number(document.documentElement.dataset.refresh);
    if (!seconds) return;
    if (!isInUse()) await look();
    setTimeout(go, (document.getElementById("stale").hidden ? seconds : RETRY_SECONDS) * 1000);
  }

  const first = Number(document.documentElement.dataset.refresh);
  if (first) setTimeout(go, first * 1000);
})();
