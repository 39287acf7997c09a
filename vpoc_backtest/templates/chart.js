// The account in the chart before this script: figures under the pointer, a span dragged over shown larger, a dot a trade.
{
  const figure = document.currentScript.previousElementSibling;
  const told = figure.querySelector('output'), times = figure.querySelector('.times');
  const plots = [...figure.querySelectorAll('.plot')];
  const data = JSON.parse(figure.querySelector('script').textContent);
  const last = data.dates.length - 1, near = 12;
  const series = [data.equity, data.drawdown];
  const asPrinted = [...plots, times].map(part => part.innerHTML);
  const order = [...data.trades].sort((a, b) => a.session - b.session);
  let at = last, from = 0, to = last, reach = data.reach, held = null;  // reach: highest and lowest mark of the account

  const minus = text => text.replace('-', '−');
  const money = v => (v < 0 ? '−$' : '$') + Math.abs(v).toLocaleString('en-US', {maximumFractionDigits: 0});
  const percent = v => minus(`${+v.toPrecision(3)}%`);
  const account = (name, k) => `${name} ${money(data.equity[k][at])} (${minus(data.drawdown[k][at].toFixed(1))}%)`;
  const across = i => 100 * (i - from) / (to - from || 1);
  const session = x => Math.max(0, Math.min(last, Math.round(from + x * (to - from))));

  // ---- the picture of the sessions from one to another ----

  const ticks = (low, high, parts) => {
    const least = (high - low || 1) / parts, size = 10 ** Math.floor(Math.log10(least));
    const step = size * [1, 2, 2.5, 5, 10].find(m => m * size >= least * .999);
    const first = Math.floor(low / step + 1e-9), count = Math.ceil(high / step - 1e-9) - first;
    return Array.from({length: Math.max(count, 1) + 1}, (_, k) => (first + k) * step);
  };
  const scale = values => {
    let low = Infinity, high = -Infinity;
    for (const line of values) for (let i = from; i <= to; i++) [low, high] = [Math.min(low, line[i]), Math.max(high, line[i])];
    return [low, high];
  };
  const line = (values, y) => {
    let path = `M0 ${y(values[from])}`;
    for (let i = from + 1; i <= to; i++) path += `H${10 * across(i)}V${y(values[i])}`;
    return path;
  };

  const panel = (plot, k) => {
    const [low, high] = scale(series[k]), marks = ticks(low, high, k ? 2 : 4);
    const bottom = marks[0], top = marks[marks.length - 1], y = v => 100 * (top - v) / (top - bottom);
    if (!k) reach = [top, bottom];
    const svg = plot.querySelector('svg'), grid = svg.querySelector('.grid');
    svg.querySelectorAll('path[style]').forEach((path, n) => path.setAttribute('d', line(series[k][n], y)));
    svg.querySelectorAll('.grid').forEach(path => path.remove());
    plot.querySelectorAll('i').forEach(number => number.remove());
    for (const mark of marks) {
      const rule = grid.cloneNode(), number = document.createElement('i');
      rule.setAttribute('d', `M0 ${y(mark)}H1000`);
      number.style.top = `${y(mark)}%`;
      number.textContent = k ? percent(mark) : money(mark);
      svg.prepend(rule);
      plot.append(number);
    }
  };

  const below = () => {
    const count = to - from + 1, step = Math.ceil(count / 6);
    const labels = [];
    for (let i = from; i <= to && across(i) < 92; i += step) {
      const [, day, month, year] = data.dates[i].split(' '), label = document.createElement('i');
      label.textContent = count > 250 ? `${month} ${year}` : `${day} ${month} ${year}`;
      label.style.left = `${across(i)}%`;
      labels.push(label);
    }
    times.replaceChildren(...labels);
  };

  // A dot on its strategy's line, at the end of the session of the trade.
  const height = trade => 100 * (reach[0] - data.equity[trade.line][trade.session]) / (reach[0] - reach[1] || 1);
  const shownTrades = () => order.filter(trade => trade.session >= from && trade.session <= to);
  const dots = () => {
    const svg = plots[0].querySelector('svg');
    svg.querySelectorAll('.dots').forEach(path => path.remove());
    for (const won of [true, false]) {
      const path = svg.querySelector('.grid').cloneNode();
      path.setAttribute('class', `dots ${won ? 'won' : 'lost'}`);
      path.setAttribute('d', shownTrades().filter(t => t.net > 0 === won).map(t => `M${10 * across(t.session)} ${height(t)}h0`).join(''));
      svg.append(path);
    }
  };

  const draw = () => {
    const all = from === 0 && to === last;
    if (all) {
      [...plots, times].forEach((part, k) => { part.innerHTML = asPrinted[k]; });
      reach = data.reach;
    } else {
      plots.forEach(panel);
      below();
    }
    dots();
    figure.dataset.sessions = to - from + 1;
    figure.classList.toggle('near', !all);
    mark();
  };

  // ---- what is asked of it ----

  const mark = () => plots.forEach(plot => plot.style.setProperty('--at', `${across(at)}%`));
  const show = i => {
    at = Math.max(0, Math.min(last, i));
    const own = order.filter(trade => trade.session === at).map(trade => ` ${money(trade.net)}`);
    const traded = own.length ? `; ${own.length > 1 ? 'trades' : 'trade'}${own.join(',')}` : '';
    told.textContent = data.dates[at] + ': ' + data.names.map(account).join(', ') + traded;
    mark();
    figure.classList.add('on');
  };
  const zoom = (a, b) => {
    const size = Math.min(Math.max(Math.round(b - a), Math.min(4, last)), last);
    from = Math.max(0, Math.min(last - size, Math.round(a)));
    to = from + size;
    draw();
  };
  const closer = (factor, i = at) => zoom(i - (i - from) * factor, i + (to - i) * factor);
  const keepInSight = () => {
    if (at < from || at > to) zoom(at - (to - from) / 2, at + (to - from) / 2);
  };

  // The row of a trade in the list is opened and clicked, which shows its session.
  const open = trade => {
    const row = trade && document.getElementById(`trade-${trade.list}-${trade.number}`);
    if (!row) return;
    const section = row.closest('details');
    if (section) section.open = true;
    row.querySelector('button').click();
  };
  const nearest = (x, y, box) => {
    const away = trade => Math.hypot(across(trade.session) / 100 * box.width - x, height(trade) / 100 * box.height - y);
    const found = shownTrades().map(trade => [away(trade), trade]).sort((a, b) => a[0] - b[0])[0];
    return found && found[0] < near ? found[1] : null;
  };

  plots.forEach((plot, k) => {
    const place = event => {
      const box = plot.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top, box];
    };
    plot.addEventListener('pointerdown', event => {
      if (event.button) return;
      const [x] = place(event);
      held = {x, plot};
      plot.setPointerCapture(event.pointerId);
      figure.focus({preventScroll: true});
      event.preventDefault();
    });
    plot.addEventListener('pointermove', event => {
      const [x, y, box] = place(event);
      show(session(x / box.width));
      plot.classList.toggle('hit', !k && Boolean(nearest(x, y, box)));
      if (!held) return;
      figure.classList.toggle('span', Math.abs(x - held.x) > 4);
      plots.forEach(p => p.style.setProperty('--from', `${100 * Math.min(x, held.x) / box.width}%`));
      plots.forEach(p => p.style.setProperty('--wide', `${100 * Math.abs(x - held.x) / box.width}%`));
    });
    plot.addEventListener('pointerup', event => {
      if (!held) return;
      const [x, y, box] = place(event), [a, b] = [held.x, x].sort((p, q) => p - q);
      held = null;
      figure.classList.remove('span');
      if (b - a > 4) zoom(session(a / box.width), session(b / box.width));
      else if (!k) open(nearest(x, y, box));
    });
    plot.addEventListener('pointercancel', () => { held = null; figure.classList.remove('span'); });
    plot.addEventListener('dblclick', () => zoom(0, last));
    plot.addEventListener('wheel', event => {
      if (!event.ctrlKey && document.activeElement !== figure) return;  // the page scrolls on
      event.preventDefault();
      const [x, , box] = place(event);
      closer(1.2 ** Math.sign(event.deltaY), from + x / box.width * (to - from));
    }, {passive: false});
  });
  figure.addEventListener('pointerleave', () => figure.classList.remove('on'));
  figure.addEventListener('keydown', event => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    const acts = {'+': () => closer(.5), '=': () => closer(.5), '-': () => closer(2), 0: () => zoom(0, last), Escape: () => zoom(0, last),
      Enter: () => open(order.find(trade => trade.session === at))};
    if (event.ctrlKey || event.metaKey || event.altKey || !(step || acts[event.key])) return;
    event.preventDefault();
    if (!step) return acts[event.key]();
    show(at + step * (event.shiftKey ? 20 : 1));
    keepInSight();
  });

  let before = [0, last];
  addEventListener('beforeprint', () => { before = [from, to]; zoom(0, last); });
  addEventListener('afterprint', () => zoom(...before));
  figure.querySelector('.how').hidden = false;
  draw();
}
