// Sort the lists of trades by a column, and show the session of a trade under its row.
{
  const data = JSON.parse(document.getElementById('sessions').textContent);
  const holder = document.createElement('div');
  holder.innerHTML = '<svg></svg>';
  const space = holder.firstChild.namespaceURI;
  const tag = (name, given, text) => {
    const made = document.createElementNS(space, name);
    for (const [key, value] of Object.entries(given)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    return made;
  };
  const price = t => (t * data.tick).toLocaleString('en-US', {minimumFractionDigits: data.digits, maximumFractionDigits: data.digits});
  const clock = m => `${String(Math.floor(m / 60) % 24).padStart(2, '0')}:${String(m % 60).padStart(2, '0')}`;

  // Candles are kept as steps from one price to the next: open from the last close, close, high, low.
  const candles = day => {
    let last = 0, minute = 0;
    return day.c.map(([step, open, body, up, down]) => {
      const o = last + open, c = o + body;
      last = c;
      minute += step;
      return {minute, o, c, h: Math.max(o, c) + up, l: Math.min(o, c) - down};
    });
  };

  const apart = (labels, least, bottom) => {
    labels.sort((a, b) => a.at - b.at);
    for (let i = 1; i < labels.length; i++) labels[i].at = Math.max(labels[i].at, labels[i - 1].at + least);
    for (let i = labels.length - 1, most = bottom; i >= 0; i--, most -= least) labels[i].at = Math.min(labels[i].at, most);
  };

  const draw = (trade, day, width) => {
    const height = Math.min(380, Math.max(260, width * .42)), foot = 22, right = 102;
    const side = Math.min(110, width * .13), x0 = side + 6, x1 = width - side - right - 6;
    const bars = candles(day);
    const [from, to] = [trade.in, trade.out];
    const levels = day.before ? {VAL: day.before[0], VPOC: day.before[1], VAH: day.before[2]} : {};
    const order = {stop: trade.stop, target: trade.target, entry: trade.entry, exit: trade.exit};
    const prices = [...bars.flatMap(b => [b.h, b.l]), ...Object.values({...levels, ...order}).filter(p => p != null)];
    const low = Math.min(...prices), span = Math.max(...prices) - low || 1;
    const y = p => 8 + (height - foot - 16) * (1 - (p - low) / span);
    const step = (x1 - x0) / bars.length, x = i => x0 + step * (i + .5);
    const at = m => x(Math.max(0, bars.findLastIndex(b => b.minute <= m)));
    const svg = tag('svg', {viewBox: `0 0 ${width} ${height}`, width, height, role: 'img', 'aria-label': trade.title});
    const add = (...given) => svg.append(tag(...given));

    const profile = (rows, left, grows, area) => {
      const [bottom, size, ...volume] = rows, most = Math.max(...volume);
      volume.forEach((v, i) => {
        const p = bottom + i * size, top = y(p + size - .5), end = y(p - .5), long = v / most * side;
        if (top < 0 || end > height - foot) return;
        const inside = area && p + size > area[0] && p <= area[1];
        add('rect', {x: grows > 0 ? left : left - long, y: top, width: long, height: Math.max(end - top - .3, .6), class: inside ? 'inside' : 'outside'});
      });
    };
    if (day.p) profile(day.p, 0, 1, day.before && [day.before[0], day.before[2]]);
    profile(day.v, x1 + 6 + side, -1);
    for (const [name, p] of Object.entries(levels)) add('path', {d: `M0 ${y(p)}H${x1 + 6 + side}`, class: `level ${name}`});
    bars.forEach((b, i) => {
      const rose = b.c >= b.o, kind = rose ? 'rose' : 'fell';
      add('path', {d: `M${x(i)} ${y(b.h)}V${y(b.l)}`, class: `wick ${kind}`});
      add('rect', {x: x(i) - step * .36, y: y(Math.max(b.o, b.c)), width: step * .72, height: Math.max(Math.abs(y(b.o) - y(b.c)), .8), class: kind});
    });
    for (const name of ['stop', 'target', 'entry']) {
      if (order[name] != null) add('path', {d: `M${at(from)} ${y(order[name])}H${x1 + 6 + side}`, class: `order ${name}`});
    }
    const arrow = (m, p, up, kind) => {
      const d = up ? 1 : -1;
      add('path', {d: `M${at(m)} ${y(p)}l-6 ${11 * d}h12z`, class: `fill ${kind}`});
    };
    arrow(from, trade.entry, trade.side > 0, 'entry');
    arrow(to, trade.exit, trade.side < 0, trade.won ? 'target' : 'stop');
    const labels = Object.entries({...levels, ...order}).filter(([, p]) => p != null).map(([name, p]) => ({name, p, at: y(p) + 4}));
    apart(labels, 13, height - foot);
    for (const l of labels) add('text', {x: width - right + 4, y: l.at, class: l.name == 'exit' ? (trade.won ? 'target' : 'stop') : l.name}, `${l.name} ${price(l.p)}`);
    const every = Math.ceil(bars.length * 46 / (x1 - x0));
    bars.forEach((b, i) => { if (i % every == 0) add('text', {x: x(i), y: height - 5, class: 'time'}, clock(b.minute)); });
    if (day.p && side > 90) add('text', {x: 0, y: height - 5, class: 'time start'}, 'session before');
    if (side > 90) add('text', {x: x1 + 6 + side, y: height - 5, class: 'time end'}, 'this session');

    const told = document.createElement('output'), cross = tag('path', {class: 'cross'});
    svg.append(cross);
    const say = i => {
      const b = bars[i];
      told.textContent = `${clock(b.minute)} ET  O ${price(b.o)}  H ${price(b.h)}  L ${price(b.l)}  C ${price(b.c)}`;
    };
    svg.addEventListener('pointermove', event => {
      const i = Math.floor((event.clientX - svg.getBoundingClientRect().left - x0) / step);
      if (!bars[i]) return;
      cross.setAttribute('d', `M${x(i)} 0V${height - foot}`);
      say(i);
    });
    say(Math.max(0, bars.findLastIndex(b => b.minute <= from)));
    return [told, svg];
  };

  // The slot of a trade: what is drawn for it lies in this element.
  const fill = (slot, key) => {
    const trade = data.trades[key], day = data.days[trade.day];
    const title = document.createElement('p');
    title.textContent = trade.title;
    slot.replaceChildren(title, ...(day ? draw(trade, day, slot.clientWidth) : ['The bars of this session are not in the page.']));
  };

  const resize = slot => {
    slot.style.width = `${slot.closest('.list').clientWidth}px`;
    fill(slot, slot.closest('tr').previousElementSibling.dataset.trade);
  };

  const toggle = row => {
    const shown = row.nextElementSibling?.classList.contains('slot') ? row.nextElementSibling : null;
    row.querySelector('button').setAttribute('aria-expanded', String(!shown));
    if (shown) return shown.remove();
    const below = document.createElement('tr'), cell = below.insertCell();
    below.className = 'slot';
    cell.colSpan = row.cells.length;
    row.after(below);
    const slot = document.createElement('div');
    cell.append(slot);
    resize(slot);
    below.scrollIntoView({block: 'nearest'});
  };

  const value = cell => {
    const number = Number(cell.textContent.replace('−', '-').replace(/[$,+]/g, ''));
    return Number.isNaN(number) ? cell.textContent : number;
  };
  const compare = (a, b) => typeof a == typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a == 'number' ? -1 : 1;
  const sort = (table, column) => {
    const heads = [...table.tHead.rows[0].cells], head = heads[column], body = table.tBodies[0];
    const way = head.getAttribute('aria-sort') == 'ascending' ? -1 : 1;
    for (const h of heads) h.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', way > 0 ? 'ascending' : 'descending');
    for (const row of body.querySelectorAll('.slot')) toggle(row.previousElementSibling);
    const keyed = [...body.rows].map(row => [value(row.cells[column]), row]);
    keyed.sort(([a], [b]) => way * compare(a, b));
    body.append(...keyed.map(([, row]) => row));
  };

  for (const table of document.querySelectorAll('table.trades')) {
    for (const [i, button] of table.querySelectorAll('thead button').entries()) {
      button.addEventListener('click', () => sort(table, i));
    }
    table.tBodies[0].addEventListener('click', event => {
      const row = event.target.closest('tr');
      if (row?.dataset.trade) toggle(row);
    });
  }
  // With the interactive chart a row names its session, and the chart says which one it shows.
  document.addEventListener('session', event => {
    for (const row of document.querySelectorAll('tr[data-session]')) {
      row.classList.toggle('on', row.dataset.session == event.detail.date);
    }
  });
  document.addEventListener('click', event => {
    if (event.target.closest('tr[data-session]')) document.querySelector('.sessions-chart').scrollIntoView({block: 'nearest'});
  });
  addEventListener('resize', () => {
    for (const slot of document.querySelectorAll('tr.slot div')) resize(slot);
  });
}
