"use strict";
// The page holds each video once as base64. Players share them.
const sources = {};
for (const [name, data] of Object.entries(JSON.parse(document.getElementById("videos").textContent))) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  sources[name] = URL.createObjectURL(new Blob([bytes], { type: "video/webm" }));
}
for (const player of document.querySelectorAll(".player")) {
  const videos = [...player.querySelectorAll("video")];
  if (!videos.length) continue;
  const [button, slider, output] = ["button", "input", "output"].map((n) => player.querySelector(n));
  const fps = Number(player.dataset.fps), frames = Number(player.dataset.frames);
  let timer = 0;
  for (const video of videos) video.src = sources[video.dataset.video];
  const show = (frame) => {
    slider.value = frame;
    output.textContent = `${frame + 1} of ${frames}`;
    slider.setAttribute("aria-valuetext", `frame ${frame + 1} of ${frames}`);
    for (const video of videos) video.currentTime = (frame + 0.5) / fps;
  };
  const stop = () => { clearInterval(timer); timer = 0; button.textContent = "Play"; };
  // No panel advances before all panels show the current frame. This keeps them together.
  const step = () => {
    if (videos.every((video) => !video.seeking)) show((Number(slider.value) + 1) % frames);
  };
  button.addEventListener("click", () => {
    if (timer) return stop();
    button.textContent = "Pause";
    timer = setInterval(step, 1000 / fps);
  });
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  videos[0].addEventListener("loadeddata", () => show(0), { once: true });
}
