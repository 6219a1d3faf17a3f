// Zooms the graph: the frame scrolls, the buttons and Ctrl+wheel and two fingers change the size of the picture.
// Without this script the frame scrolls over the picture in its own size.
(() => {
  const svg = document.getElementById('graph');
  if (!svg) return;
  const frame = svg.parentElement;
  const tools = document.getElementById('graph-tools');
  const width = +svg.getAttribute('width'), height = +svg.getAttribute('height');
  let scale = 1;
  const zoom = (to, x = frame.clientWidth / 2, y = frame.clientHeight / 2) => {
    to = Math.min(4, Math.max(Math.min(0.02, frame.clientWidth / width), to));
    const left = (frame.scrollLeft + x) / scale, top = (frame.scrollTop + y) / scale;
    scale = to;
    svg.style.width = width * scale + 'px';
    svg.style.height = height * scale + 'px';
    svg.classList.toggle('far', scale < 0.45);
    frame.scrollLeft = left * scale - x;
    frame.scrollTop = top * scale - y;
  };
  const fit = () => zoom(Math.min(1, frame.clientWidth / width, frame.clientHeight / height));
  const buttons = { in: () => zoom(scale * 1.4), out: () => zoom(scale / 1.4), fit, full: () => zoom(1) };
  for (const b of tools.querySelectorAll('button')) b.onclick = buttons[b.dataset.do];
  frame.addEventListener('wheel', e => {
    if (!e.ctrlKey && !e.metaKey) return;
    e.preventDefault();
    const box = frame.getBoundingClientRect();
    zoom(scale * Math.exp(-e.deltaY / 300), e.clientX - box.left, e.clientY - box.top);
  }, { passive: false });
  let drag = null;
  frame.addEventListener('mousedown', e => { drag = [e.clientX, e.clientY]; e.preventDefault(); });
  addEventListener('mousemove', e => {
    if (!drag) return;
    frame.scrollBy(drag[0] - e.clientX, drag[1] - e.clientY);
    drag = [e.clientX, e.clientY];
  });
  addEventListener('mouseup', () => { drag = null; });
  let pinch = null;
  const fingers = e => Math.hypot(e.touches[0].clientX - e.touches[1].clientX, e.touches[0].clientY - e.touches[1].clientY);
  frame.addEventListener('touchmove', e => {
    if (e.touches.length !== 2) { pinch = null; return; }
    e.preventDefault();
    const now = fingers(e), box = frame.getBoundingClientRect();
    const x = (e.touches[0].clientX + e.touches[1].clientX) / 2 - box.left;
    const y = (e.touches[0].clientY + e.touches[1].clientY) / 2 - box.top;
    if (pinch) zoom(scale * now / pinch, x, y);
    pinch = now;
  }, { passive: false });
  frame.addEventListener('touchend', () => { pinch = null; });
  tools.querySelector('input').oninput = e => {
    const word = e.target.value.toLowerCase();
    let first = null;
    for (const g of svg.querySelectorAll('g')) {
      const hit = word !== '' && g.firstElementChild.textContent.toLowerCase().includes(word);
      g.classList.toggle('hit', hit);
      if (hit && !first) first = g;
    }
    if (first) {
      const r = first.querySelector('rect');
      frame.scrollTo(r.getAttribute('x') * scale - frame.clientWidth / 2 + 60, r.getAttribute('y') * scale - frame.clientHeight / 2);
    }
  };
  tools.hidden = false;
  frame.classList.add('live');
  // Legible at first: the whole width where that is not too small, and the input in the middle.
  zoom(Math.min(1, Math.max(0.6, frame.clientWidth / width)), 0, 0);
  frame.scrollLeft = (width * scale - frame.clientWidth) / 2;
  frame.scrollTop = 0;
})();
