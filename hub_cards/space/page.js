// Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
// Gradio draws the page when it likes, so everything listens at the document. Nothing is kept but the answer on the screen.
"use strict";
(() => {
  const byId = id => document.getElementById(id);
  let frames = [], model = "", strange = false, shown = 0, timer = null, request = null;

  // ---- sending

  function send(url, body) {
    if (request) request.abort();
    stop();
    const mine = request = new XMLHttpRequest();
    mine.open("POST", new URL(url, document.baseURI));
    mine.responseType = "json";
    say(body ? "Sending ..." : "Looking ...");
    byId("u-error").textContent = "";
    byId("u-result").setAttribute("aria-busy", "true");
    mine.upload.onprogress = event => {
      if (event.lengthComputable && event.loaded < event.total) say(`Sending ${Math.floor(100 * event.loaded / event.total)} %`);
    };
    mine.upload.onload = () => say("Looking ...");
    mine.onload = () => {
      const answer = mine.response || {};
      if (mine.status === 200 && answer.frames) show(answer);
      else fail(answer.error || "The app gave no answer. Try again.");
    };
    mine.onerror = () => fail("The app can't be reached. Is it still running?");
    // The bytes alone: a file's name may be a person's.
    if (body) mine.setRequestHeader("Content-Type", "application/octet-stream");
    mine.send(body);
  }

  function take(files) {
    const file = files && files[0], limit = Number(byId("u-file").dataset.maxMb);
    byId("u-file").value = "";
    if (!file) return;
    mark(null);
    if (files.length > 1) return fail("Drop one file at a time.");
    if (!file.size) return fail("This file has no bytes.");
    if (file.size > limit * 1048576) return fail(`This file is too large: at most ${limit} MB are read. Cut the loop, or drop one of its frames.`);
    send("look", file.slice());
  }

  function mark(example) {
    document.querySelectorAll(".u-example").forEach(b => b.setAttribute("aria-current", String(b === example)));
  }

  function say(text) {
    const status = byId("u-status");
    if (status.textContent !== text) status.textContent = text;
    status.classList.toggle("u-on", Boolean(text));
  }

  function fail(text) {
    if (request) request.abort(); // an answer that is under way must not stand beside the error
    stop();
    say("");
    frames = [];
    const title = document.createElement("b");
    title.textContent = "Not shown";
    byId("u-error").replaceChildren(title, text);
    byId("u-result").replaceChildren();
    byId("u-result").removeAttribute("aria-busy");
    byId("u-error").scrollIntoView({block: "nearest"});
  }

  // ---- showing

  function show(answer) {
    ({frames, model, strange} = answer);
    shown = 0;
    say("");
    const result = byId("u-result");
    result.innerHTML = answer.html;
    result.removeAttribute("aria-busy");
    const title = byId("u-result-title");
    title.focus({preventScroll: true});
    if (title.getBoundingClientRect().top > innerHeight * 0.6 || title.getBoundingClientRect().top < 0) {
      title.scrollIntoView({block: "start"});
    }
  }

  function turnTo(number) {
    shown = Math.min(Math.max(number, 0), frames.length - 1);
    const frame = frames[shown], slider = byId("u-frame");
    document.querySelectorAll("#u-result img[data-view]").forEach(image => { image.src = frame[image.dataset.view]; });
    slider.value = shown;
    slider.setAttribute("aria-valuetext", frame.place);
    byId("u-frame-place").textContent = frame.place;
    document.querySelectorAll("[data-frame-name]").forEach(place => { place.textContent = frame.name; });
    const rows = byId("u-answers") ? byId("u-answers").children : [];
    frame.answers.forEach((answer, i) => {
      const [label, bar, share] = rows[i].children;
      label.textContent = answer.label;
      bar.firstElementChild.style.width = `${100 * answer.share}%`;
      share.textContent = answer.text;
    });
  }

  function play() {
    const button = byId("u-play");
    if (timer) return stop();
    button.textContent = "Pause";
    timer = setInterval(() => turnTo((shown + 1) % frames.length), 1000 / Number(button.dataset.rate));
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    const button = byId("u-play");
    if (button) button.textContent = "Play";
  }

  // ---- saving: the scan region alone, as what is outside may say who was scanned

  const load = source => new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = failed;
    image.src = source;
  });

  async function save() {
    const frame = frames[shown];
    if (!frame) return;
    const pictures = await Promise.all([frame.seen, frame.tokens, frame.attention].map(load));
    const values = Boolean(document.querySelector(".u-values"));
    const tall = Math.round(460 * Math.min(Math.max(pictures[0].height / pictures[0].width, 0.5), 1.3));
    const side = 460, gap = 20, width = 3 * side + 4 * gap, bar = width - 2 * gap - 280, answers = frame.answers.slice(0, 4);
    const height = 118 + tall + 34 + Math.max(answers.length, 1) * 30 + 56;
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    const draw = canvas.getContext("2d");
    const text = (words, x, y, font, colour, align = "left") => {
      [draw.font, draw.fillStyle, draw.textAlign] = [`${font} "Liberation Sans", Arial, sans-serif`, colour, align];
      draw.fillText(words, x, y);
    };
    draw.fillStyle = "#ffffff";
    draw.fillRect(0, 0, width, height);
    text("URFM: what the model sees", gap, 48, "600 27px", "#14222a");
    text("Not for clinical use", width - gap, 48, "600 20px", "#96360f", "right");
    ["Scan region", "Patch features", "Attention"].forEach((name, i) => {
      const left = gap + i * (side + gap), image = pictures[i];
      const scale = Math.min(side / image.width, tall / image.height);
      text(name, left, 94, "600 19px", "#14222a");
      draw.fillStyle = "#000000";
      draw.fillRect(left, 108, side, tall);
      const [w, h] = [image.width * scale, image.height * scale];
      draw.imageSmoothingQuality = "high";
      draw.drawImage(image, left + (side - w) / 2, 108 + (tall - h) / 2, w, h);
    });
    answers.forEach((answer, i) => {
      const y = 108 + tall + 40 + i * 30;
      text(answer.label, gap, y, "18px", "#14222a");
      draw.fillStyle = values ? "#ffffff" : "#dbe2e5";
      draw.fillRect(gap + 210, y - 13, bar, 13);
      draw.fillStyle = strange ? "#8b979e" : "#0b7a6c";
      draw.fillRect(gap + 210, y - 13, bar * answer.share, 13);
      text(answer.text, width - gap, y, "600 18px", "#14222a", "right");
    });
    const which = frames.length > 1 ? `, ${frame.name}` : "";
    text(`Model: ${model}${which}${strange ? ". Unlike all that the answers were learnt from: they mean little." : ""}`, gap, height - 20, "16px", "#50626c");
    canvas.toBlob(blob => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = frames.length > 1 ? `urfm-${shown + 1}.png` : "urfm.png";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }, "image/png");
  }

  // ---- what people do

  const zone = event => event.target.closest && event.target.closest("#u-drop");
  document.addEventListener("change", event => { if (event.target.id === "u-file") take(event.target.files); });
  document.addEventListener("input", event => {
    if (event.target.id === "u-frame") { stop(); turnTo(Number(event.target.value)); }
  });
  document.addEventListener("click", event => {
    const button = event.target.closest && event.target.closest("button");
    if (!button) return;
    if (button.dataset.example) { mark(button); send(`look?example=${encodeURIComponent(button.dataset.example)}`); }
    else if (button.id === "u-play") play();
    else if (button.id === "u-save") save();
  });
  // A file that misses the zone must not take the page's place.
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, event => {
      const drop = byId("u-drop");
      if (!drop || !event.dataTransfer) return;
      event.preventDefault();
      event.stopPropagation();
      drop.classList.toggle("u-over", kind === "dragover" && Boolean(zone(event)));
      if (kind === "drop") take(event.dataTransfer.files);
    }, true);
  }
})();
