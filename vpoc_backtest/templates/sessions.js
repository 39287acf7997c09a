// The chart of sessions. One drawing code for the widget in JupyterLab and for the page of a report.
// Lightweight Charts draws candles, axes, zoom and crosshair; what it has no series for is drawn here on its canvas.
// Prices are whole ticks until they are drawn. Times are the clock of New York, written as if it were UTC.
const VpocChart = (() => {
  const LW = window.LightweightCharts;
  const MONTHS = 'Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec'.split(' ');
  const DAYS = 'Sun Mon Tue Wed Thu Fri Sat'.split(' ');
  const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
  const BARS = [[1, '1 min'], [5, '5 min'], [30, '30 min'], ['tpo', 'TPO']];
  const COUNTS = [1, 2, 3, 5, 10, 20];
  const LAYERS = {
    profile: 'profile', developing: 'developing', vwap: 'VWAP', known: 'yesterday', naked: 'naked',
    ib: 'IB', overnight: 'overnight', order: 'orders',
  };
  const LIGHT = {
    up: '#12876a', down: '#d03434', grid: '#eef1f4', volume: '#c3ccd6', inside: '#56B4E980', outside: '#9aa7b455',
    row: '#0072B2', area: '#56B4E91c', dev: '#c77700', vwap: '#7a43b6', known: '#0072B2', naked: '#a8437f',
    ib: '#1f86c4', overnight: '#6b7785', target: '#0a8a62', entry: '#4a5561', stop: '#c62828', span: '#7a43b6',
    win: '#0a8a62', loss: '#c62828', fill: '#0072B2', letter: '#3b4754',
  };
  const DARK = {
    up: '#2fb892', down: '#f0605d', grid: '#ffffff12', volume: '#4a5663', inside: '#56B4E970', outside: '#9aa7b43c',
    row: '#6cc1f2', area: '#56B4E91f', dev: '#f0b040', vwap: '#b48cf0', known: '#6cb8ee', naked: '#e58fc0',
    ib: '#6fc3f5', overnight: '#a4b0bd', target: '#45cf9f', entry: '#c3ccd6', stop: '#ff7a74', span: '#b48cf0',
    win: '#45cf9f', loss: '#ff7a74', fill: '#6cb8ee', letter: '#c9d2db',
  };
  const DASH = {solid: [], dash: [6, 4], dot: [2, 3]};

  const two = n => String(n).padStart(2, '0');
  const clock = t => { const d = new Date(t * 1000); return `${two(d.getUTCHours())}:${two(d.getUTCMinutes())}`; };
  const dayOf = t => { const d = new Date(t * 1000); return `${d.getUTCDate()} ${MONTHS[d.getUTCMonth()]}`; };
  const fullDay = t => `${DAYS[new Date(t * 1000).getUTCDay()]} ${dayOf(t)} ${new Date(t * 1000).getUTCFullYear()}`;
  const whole = v => Math.round(v).toLocaleString('en-US');

  function node(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
      else if (value !== false && value != null) made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  // ---- a session, from small integers back to bars ----

  function spread(changes, n) {
    const out = new Float64Array(n).fill(NaN);
    for (let k = 0; k < changes.length; k += 2) out.fill(changes[k + 1], changes[k], changes[k + 2] ?? n);
    return out;
  }

  function cumulated(steps, scale) {
    let sum = 0;
    return steps.map(step => step === null ? NaN : (sum += step) / scale);
  }

  function unpack(packed) {
    const n = packed.v.length, bars = [];
    let close = packed.base, time = packed.clock[0];
    for (let i = 0; i < n; i++) {
      if (i) time += Array.isArray(packed.clock[1]) ? packed.clock[1][i - 1] : packed.clock[1];
      const open = close + packed.ohlc[4 * i];
      close = open + packed.ohlc[4 * i + 3];
      const high = Math.max(open, close) + packed.ohlc[4 * i + 1], low = Math.min(open, close) - packed.ohlc[4 * i + 2];
      bars.push({time, open, high, low, close, volume: packed.v[i]});
    }
    const dev = {};
    for (const name of ['vpoc', 'val', 'vah']) dev[name] = spread(packed.dev[name], n);
    return {...packed, bars, dev, vwap: cumulated(packed.vwap, 10), sd: cumulated(packed.sd, 10),
      tpo: [...packed.letters, packed.tpo], lines: [...packed.ranges, ...packed.lines]};
  }

  // ---- a replay in a page: what was known of a session after its first `n` bars (in JupyterLab, Python counts it) ----

  const WEIGHTS = {
    uniform: () => () => 1,
    close: bar => tick => tick === bar.close ? 1 : 0,
    ohlc: (bar, size) => tick => {
      const near = price => 1 / (1 + Math.abs(tick - price) * size);
      return 1 + near(bar.open) + near(bar.high) + near(bar.low) + near(bar.close);
    },
  };

  const lowest = bars => Math.min(...bars.map(bar => bar.low)), highest = bars => Math.max(...bars.map(bar => bar.high));

  function profileOf(bars, {spread, tick}) {
    const low = lowest(bars), high = highest(bars);
    const volumes = Array(high - low + 1).fill(0);
    for (const bar of bars) {
      const weight = WEIGHTS[spread](bar, tick), shares = [];
      for (let t = bar.low; t <= bar.high; t++) shares.push(weight(t));
      const all = shares.reduce((a, b) => a + b, 0);
      shares.forEach((share, k) => { volumes[bar.low - low + k] += bar.volume * share / all; });
    }
    return [low, volumes];
  }

  function lettersOf(bars, whole) {
    let first = 0;  // half hours of the session before its first bar
    while (!whole.some(mask => Math.floor(mask / 2 ** first) % 2)) first += 1;
    const low = lowest(bars), high = highest(bars);
    const traded = Array.from({length: high - low + 1}, () => new Set());
    const half = time => Math.floor(time / 1800);
    for (const bar of bars) for (let t = bar.low; t <= bar.high; t++) traded[t - low].add(first + half(bar.time) - half(bars[0].time));
    return [low, traded.map(periods => [...periods].reduce((sum, period) => sum + 2 ** period, 0)), [NaN, NaN, NaN]];
  }

  function knownAfter(day, n, meta) {
    const bars = day.bars.slice(0, n), head = values => values.slice(0, n), end = bars.length - 1;
    const dev = Object.fromEntries(Object.entries(day.dev).map(([name, values]) => [name, head(values)]));
    const own = Object.fromEntries(Object.entries(dev).map(([name, values]) => [name, values[end]]));
    const open = trade => trade.out !== null && trade.out <= end ? trade : {side: trade.side, in: trade.in, entry: trade.entry, out: null, told: trade.told.slice(0, 1)};
    return {...day, bars, dev, own, vwap: head(day.vwap), sd: head(day.sd), joined: {}, profile: profileOf(bars, meta), tpo: lettersOf(bars, day.tpo[1]),
      lines: day.lines.map(([kind, label, tick, begin, until]) => [kind, label, tick, begin, Math.min(until, bars.length)]),
      trades: day.trades.filter(trade => trade.in <= end).map(open)};
  }

  // Join bars by the clock; `at[i]` is the candle of bar i.
  function candlesOf(day, minutes) {
    const candles = [], at = [];
    let bucket = null;
    day.bars.forEach((bar, i) => {
      const own = Math.floor(bar.time / (60 * minutes));
      if (own !== bucket) {
        candles.push({...bar, first: i, last: i});
        bucket = own;
      } else {
        const candle = candles[candles.length - 1];
        candle.high = Math.max(candle.high, bar.high);
        candle.low = Math.min(candle.low, bar.low);
        candle.close = bar.close;
        candle.volume += bar.volume;
        candle.last = i;
      }
      at.push(candles.length - 1);
    });
    return {candles, at};
  }

  // Heights at least `gap` apart, as near as can be to those wanted (rising): neighbours too close share the middle.
  function apart(wanted, gap) {
    const groups = [];
    wanted.forEach((y, k) => {
      groups.push([y - k * gap, 1]);
      while (groups.length > 1 && groups[groups.length - 2][0] > groups[groups.length - 1][0]) {
        const [[a, m], [b, n]] = groups.splice(-2);
        groups.push([(a * m + b * n) / (m + n), m + n]);
      }
    });
    return groups.flatMap(([mean, size]) => Array(size).fill(mean)).map((y, k) => y + k * gap);
  }

  // ---- what Lightweight Charts calls a primitive: something drawn on its canvas, under or over the candles ----

  class Layer {
    constructor(place, draw, range) {
      const view = {zOrder: () => place, renderer: () => ({draw: target => target.useMediaCoordinateSpace(s => draw(s.context, s.mediaSize))})};
      this.views = [view];
      this.range = range;
    }
    attached({requestUpdate}) { this.update = requestUpdate; }
    paneViews() { return this.views; }
    autoscaleInfo(from, to) { return this.range ? this.range(from, to) : null; }
  }

  class Chart {
    constructor(root, ask) {
      this.root = root;
      this.ask = ask;  // what Python, or the page, is asked for
      this.days = [];
      this.on = Object.fromEntries(Object.keys(LAYERS).map(name => [name, true]));
      this.kind = null;  // null: by the number of sessions
      this.split = false;
      root.classList.add('vpoc-chart');
      root.tabIndex = 0;
      root.dataset.lmSuppressShortcuts = 'true';  // JupyterLab leaves the keys to the chart
      this.bar = node('div', {class: 'vc-bar'});
      this.box = node('div', {class: 'vc-box'});
      this.legend = node('div', {class: 'vc-legend'});
      this.words = node('div', {class: 'vc-words'});
      this.note = node('div', {class: 'vc-note', role: 'status'});
      root.append(this.bar, this.legend, this.box, this.note, this.words);
      this.makeChart();
      root.addEventListener('keydown', event => this.key(event));
      this.box.addEventListener('pointerdown', () => root.focus({preventScroll: true}));
      for (const type of ['mousedown', 'pointerdown']) this.box.addEventListener(type, event => this.select(event), true);
      this.sized = new ResizeObserver(() => {
        if (this.waiting && this.box.clientWidth) this.answer(this.waiting);
        else if (this.fitted && this.box.clientWidth) requestAnimationFrame(() => this.fit());  // after the library's own
      });
      this.box.addEventListener('wheel', () => { this.fitted = false; }, {passive: true, capture: true});
      this.box.addEventListener('pointermove', event => { if (event.buttons) this.fitted = false; }, true);
      this.sized.observe(this.box);
      this.watch = new MutationObserver(() => this.theme());
      this.watch.observe(document.body, {attributes: true, attributeFilter: ['data-jp-theme-light', 'data-jp-theme-name', 'class', 'data-vscode-theme-kind']});
      this.media = window.matchMedia('(prefers-color-scheme: dark)');
      this.media.addEventListener('change', this.repaint = () => this.theme());
    }

    remove() {
      this.stop();
      this.watch.disconnect();
      this.sized.disconnect();
      this.media.removeEventListener('change', this.repaint);
      this.chart.remove();
    }

    makeChart() {
      this.chart = LW.createChart(this.box, {
        autoSize: true,
        layout: {fontSize: 11, attributionLogo: true, background: {color: 'transparent'}},
        rightPriceScale: {borderVisible: false, scaleMargins: {top: .08, bottom: .16}},
        timeScale: {borderVisible: false, timeVisible: true, secondsVisible: false, minBarSpacing: .02, rightOffset: 0, enableConflation: true,
          tickMarkFormatter: (t, type) => type < 3 ? dayOf(t) : clock(t)},
        localization: {timeFormatter: t => `${fullDay(t)} ${clock(t)} ET`, priceFormatter: p => this.price(p)},
        crosshair: {mode: LW.CrosshairMode.Normal},
      });
      this.series = this.chart.addSeries(LW.CandlestickSeries, {priceLineVisible: false, lastValueVisible: false, borderVisible: false});
      this.under = new Layer('bottom', (c, size) => this.drawUnder(c, size), (from, to) => this.range(from, to));
      this.over = new Layer('top', (c, size) => this.drawOver(c, size));
      this.series.attachPrimitive(this.under);
      this.series.attachPrimitive(this.over);
      this.chart.subscribeCrosshairMove(at => this.tell(at.logical));
    }

    theme() {
      const style = getComputedStyle(this.root);
      const probe = node('i', {style: 'color: var(--vc-paper); display: none'});
      this.root.append(probe);
      const paper = getComputedStyle(probe).color.match(/[\d.]+/g).map(Number);
      probe.remove();
      const dark = paper[0] * .3 + paper[1] * .59 + paper[2] * .11 < 128;
      this.colour = dark ? DARK : LIGHT;
      this.paper = `rgba(${paper.slice(0, 3)},.82)`;
      this.font = style.fontFamily;
      const {up, down, grid} = this.colour, clear = 'transparent', tpo = this.shownKind === 'tpo';
      const {meta} = this.state ?? {}, looks = [paper, style.color, style.fontFamily, tpo, meta?.tick].join();
      if (looks === this.looks) return;  // each change of options costs a drawing
      this.looks = looks;
      this.root.dataset.theme = dark ? 'dark' : 'light';
      this.chart.applyOptions({layout: {textColor: style.color, fontFamily: style.fontFamily}, grid: {vertLines: {color: clear}, horzLines: {color: grid}}});
      const [rise, fall] = tpo ? [clear, clear] : [up, down];
      this.series.applyOptions({upColor: rise, downColor: fall, wickUpColor: rise, wickDownColor: fall});
      if (meta) this.series.applyOptions({priceFormat: {type: 'price', precision: meta.digits, minMove: meta.tick}});
    }

    // ---- data in ----

    price(points) {
      const digits = this.state?.meta.digits ?? 2;
      return Number.isNaN(points) ? '–' : points.toLocaleString('en-US', {minimumFractionDigits: digits, maximumFractionDigits: digits});
    }

    get shownKind() {
      if (this.kind) return this.kind;
      return this.days.length > 5 ? 30 : this.days.length > 1 ? 5 : 1;
    }

    show(state) {
      this.state = state;
      const before = this.unpacked ?? new Map();  // most sessions were shown before
      this.unpacked = new Map(state.days.map(text => [text, before.get(text) ?? unpack(typeof text === 'string' ? JSON.parse(text) : text)]));
      this.days = [...this.unpacked.values()];
      if (!state.meta.python && state.view.until != null) this.days = this.days.map(day => knownAfter(day, state.view.until, state.meta));
      const names = this.days.map(day => day.date).join(), replaying = state.view.until != null;
      const moved = names !== this.names || replaying !== this.replaying;
      this.names = names;
      this.replaying = replaying;
      this.controls();
      this.rebuild(moved);
      this.write();
      if (!this.replaying) this.stop();
    }

    rebuild(fit) {
      const kept = this.chart.timeScale().getVisibleLogicalRange();
      const minutes = this.shownKind === 'tpo' ? 30 : this.shownKind;
      const tick = this.state.meta.tick, prices = [];
      this.all = [];
      let last = -Infinity;
      for (const day of this.days) {
        day.joined ??= {};
        Object.assign(day, day.joined[minutes] ??= candlesOf(day, minutes), {start: this.all.length});
        for (const candle of day.candles) {
          last = Math.max(candle.time, last + 1);  // the library wants times that rise
          const {open, high, low, close} = candle;
          prices.push({time: last, open: open * tick, high: high * tick, low: low * tick, close: close * tick});
          this.all.push({day, candle});
        }
        day.width = day.candles.length;
      }
      this.usual = Math.max(...this.days.map(day => day.width), this.replaying ? 390 / minutes : 1);
      for (const day of this.days) day.room = day.width;  // in candles; a replay leaves room for what comes
      if (this.replaying) this.days[this.days.length - 1].room = Math.max(this.usual, this.days[this.days.length - 1].width);
      this.theme();
      const bars = [this.names, this.shownKind, this.state.view.until].join();
      if (bars !== this.barsShown) {  // a setting changes levels, not bars
        this.barsShown = bars;
        this.chart.clearCrosshairPosition();  // there may be no bar under it any more
        this.series.setData(prices);
      }
      if (fit) this.fit();
      else if (kept) this.chart.timeScale().setVisibleLogicalRange(kept);
      this.tell(null);
      this.under.update();
    }

    fit() {
      if (!this.days.length) return;
      this.fitted = true;
      const last = this.days[this.days.length - 1], end = last.start + last.room;
      const width = Math.max(this.box.clientWidth - 70, 300), pixel = end / (width - 170);  // in candles
      this.series.priceScale().setAutoScale(true);
      this.chart.timeScale().setVisibleLogicalRange({from: -Math.max(.6, 20 * pixel), to: end + 150 * pixel});  // the first date, names of lines
    }

    // The prices that must be in sight beside the candles: orders, and levels no further away than the session is high.
    range(from, to) {
      let low = Infinity, high = -Infinity;
      for (const day of this.days) {
        if (day.start > to || day.start + day.width < from) continue;
        const top = highest(day.candles), bottom = lowest(day.candles);
        for (const [kind, , tick] of day.lines) {
          const near = tick <= top + (top - bottom) / 2 && tick >= bottom - (top - bottom) / 2;
          const traded = kind === 'order' && (day.trades.length || this.days.length === 1);
          if (!this.on[kind] || kind === 'naked' || !(near || traded)) continue;
          low = Math.min(low, tick);
          high = Math.max(high, tick);
        }
      }
      if (!(low <= high)) return null;
      return {priceRange: {minValue: low * this.state.meta.tick, maxValue: high * this.state.meta.tick}};
    }

    // ---- drawing; x by number of the candle, y by tick ----

    scales(size) {
      const times = this.chart.timeScale(), tick = this.state.meta.tick, base = this.days[0].bars[0].close;
      const x0 = times.logicalToCoordinate(0), step = times.options().barSpacing;
      const y0 = this.series.priceToCoordinate(base * tick);
      const up = (this.series.priceToCoordinate((base + 400) * tick) - y0) / 400;
      if (x0 === null || y0 === null) return null;
      const x = k => x0 + k * step, y = t => y0 + (t - base) * up;
      const shown = this.days.filter(day => x(day.start + day.room) > 0 && x(day.start) < size.width);
      const narrow = this.usual * step < 70;  // many sessions: only what can be told apart
      return {x, y, step, row: Math.abs(up), shown, narrow, left: day => x(day.start - .5), right: day => x(day.start + day.room - .5)};
    }

    drawUnder(c, size) {
      const at = this.days.length && this.scales(size);
      if (!at) return;
      this.drawVolume(c, at, size);
      for (const day of at.shown) {
        if (this.on.known) this.drawArea(c, at, day);
        if (day !== this.days[0]) this.drawEdge(c, at, day, size);
        if (this.on.order) this.drawTradeBoxes(c, at, day);
        if (this.on.profile) this.drawOwnProfile(c, at, day);
      }
      const span = this.state.span;
      if (span) this.drawSpan(c, at, span, size);
    }

    // Along the lower edge, no bar narrower than a pixel: candles that share one are joined to the largest of them.
    drawVolume(c, at, size) {
      const candle = x => Math.max(0, Math.min(this.all.length, Math.round((x - at.x(0)) / at.step)));
      const stride = Math.max(1, Math.floor(1 / at.step)), first = candle(0), seen = this.all.slice(first, candle(size.width) + 1);
      const tall = [], wide = Math.max(1, .8 * stride * at.step);
      for (let k = 0; k < seen.length; k += stride) tall.push(Math.max(...seen.slice(k, k + stride).map(({candle}) => candle.volume)));
      const unit = .13 * size.height / Math.max(...tall, 1);
      c.fillStyle = this.colour.volume;
      tall.forEach((volume, k) => c.fillRect(at.x(first + (k + .5) * stride - .5) - wide / 2, size.height - volume * unit, wide, volume * unit));
    }

    drawArea(c, at, day) {
      const lines = Object.fromEntries(day.lines.filter(l => l[0] === 'known').map(l => [l[1].slice(-3), l[2]]));
      if (lines.VAH === undefined) return;
      c.fillStyle = this.colour.area;
      c.fillRect(at.left(day), at.y(lines.VAH), at.right(day) - at.left(day), at.y(lines.VAL) - at.y(lines.VAH));
    }

    drawEdge(c, at, day, size) {
      c.fillStyle = this.colour.volume;
      c.globalAlpha = .6;
      c.fillRect(Math.round(at.left(day)), 0, 1, size.height);
      c.globalAlpha = 1;
    }

    // The profile of a session: from its left edge, or right of its letters.
    drawOwnProfile(c, at, day) {
      const wide = day.room * at.step, tpo = this.shownKind === 'tpo';
      const letters = this.split ? wide : Math.min(wide, 10 * day.room) + 6;
      if (tpo && wide - letters < 40) return;
      const [left, width] = tpo ? [letters, .8 * (wide - letters)] : [0, .34 * wide];
      this.drawProfile(c, at, day.profile, day.own, at.left(day) + left, width);
    }

    drawProfile(c, at, [low, volumes], {vpoc, val, vah}, left, width) {
      const rows = Math.max(1, Math.ceil(2 / at.row)), thick = Math.max(1, rows * at.row - (at.row > 3 ? 1 : 0));
      const sums = [];
      for (let k = 0; k < volumes.length; k += rows) sums.push(volumes.slice(k, k + rows).reduce((a, b) => a + b, 0));
      const most = Math.max(...sums);
      sums.forEach((sum, k) => {
        const tick = low + k * rows, middle = tick + (rows - 1) / 2;
        const inside = tick + rows - 1 >= val && tick <= vah, peak = vpoc >= tick && vpoc < tick + rows;
        c.fillStyle = peak ? this.colour.row : inside ? this.colour.inside : this.colour.outside;
        c.globalAlpha = peak ? .75 : 1;
        c.fillRect(left, at.y(middle) - thick / 2, width * sum / most, thick);
      });
      c.globalAlpha = 1;
    }

    drawTradeBoxes(c, at, day) {
      for (const t of day.trades) {
        const x = at.x(day.start + day.at[t.in] - .5), end = t.out === null ? at.right(day) : at.x(day.start + day.at[t.out] + .5);
        for (const [kind, label, tick] of day.lines) {
          if (kind !== 'order' || label.startsWith('entry')) continue;
          c.fillStyle = label.startsWith('stop') ? this.colour.stop : this.colour.target;
          c.globalAlpha = .13;
          c.fillRect(x, Math.min(at.y(tick), at.y(t.entry)), Math.max(end - x, 2), Math.abs(at.y(tick) - at.y(t.entry)));
        }
      }
      c.globalAlpha = 1;
    }

    place(date, i) {
      const day = this.days.find(d => d.date === date);
      return day && day.start + day.at[Math.min(i, day.at.length - 1)];
    }

    drawSpan(c, at, span, size) {
      const first = this.place(...span.from), last = this.place(...span.to);
      if (first === undefined || last === undefined) return;
      const left = at.x(first - .5), right = at.x(last + .5);
      c.fillStyle = this.colour.span;
      c.globalAlpha = .08;
      c.fillRect(left, 0, right - left, size.height);
      c.globalAlpha = 1;
      this.drawProfile(c, at, span.profile, span, left, .3 * (right - left));
      for (const name of ['vah', 'vpoc', 'val']) this.drawLine(c, left, right, at.y(span[name]), this.colour.span, name === 'vpoc' ? 'solid' : 'dash', 1.6);
    }

    drawLine(c, left, right, y, colour, dash, width = 1) {
      c.strokeStyle = colour;
      c.lineWidth = width;
      c.setLineDash(DASH[dash]);
      c.beginPath();
      c.moveTo(left, Math.round(y) + .5);
      c.lineTo(right, Math.round(y) + .5);
      c.stroke();
      c.setLineDash([]);
    }

    drawOver(c, size) {
      const at = this.days.length && this.scales(size);
      if (!at) return;
      c.font = `11px ${this.font}`;
      c.textBaseline = 'middle';
      for (const day of at.shown) {
        if (this.shownKind === 'tpo') this.drawLetters(c, at, day);
        else {
          if (this.on.vwap) this.drawVwap(c, at, day);
          if (this.on.developing) this.drawDeveloping(c, at, day);
        }
        for (const line of day.lines) this.drawLevel(c, at, day, line);
        if (this.on.order) this.drawFills(c, at, day);
      }
      this.drawLabels(c, at, size);
      if (this.drag) this.drawDrag(c, size);
    }

    lineStyle([kind, label]) {
      if (kind === 'order') { const name = label.split(' ')[0]; return [this.colour[name], name === 'entry' ? 'solid' : 'dash', 1.6]; }
      return [this.colour[kind], {known: label.endsWith('VPOC') ? 'solid' : 'dash', naked: 'dot', ib: 'dash', overnight: 'dot'}[kind], 1];
    }

    drawn(at, day, [kind, label, , begin]) {
      if (!this.on[kind] || begin >= day.at.length) return false;
      return !at.narrow || kind === 'naked' || kind === 'order' && day.trades.length > 0 || label.endsWith('VPOC');
    }

    drawLevel(c, at, day, line) {
      const [, , tick, begin, end] = line;
      if (!this.drawn(at, day, line)) return;
      const left = begin ? at.x(day.start + day.at[begin] - .5) : at.left(day);
      const right = end >= day.at.length ? at.right(day) : at.x(day.start + day.at[end] + .5);
      this.drawLine(c, left, right, at.y(tick), ...this.lineStyle(line));
    }

    path(c, at, day, values, stepped) {
      const stride = Math.max(1, Math.floor(.7 / at.step));
      let begun = false, y;
      c.beginPath();
      for (let k = 0; k < day.candles.length; k += stride) {
        const value = values(day.candles[k].last);
        if (Number.isNaN(value)) continue;
        const x = at.x(day.start + k);
        if (begun && stepped) c.lineTo(x - at.step / 2, y);
        y = at.y(value);
        if (begun) c.lineTo(stepped ? x - at.step / 2 : x, y);
        else c.moveTo(stepped ? x - at.step / 2 : x, y);
        if (stepped) c.lineTo(x + at.step / 2, y);
        begun = true;
      }
      c.stroke();
    }

    drawVwap(c, at, day) {
      c.strokeStyle = this.colour.vwap;
      c.lineWidth = 1.6;
      this.path(c, at, day, i => day.vwap[i]);
      if (at.narrow) return;
      c.lineWidth = 1;
      c.globalAlpha = .55;
      for (const k of [-2, -1, 1, 2]) {
        c.setLineDash(Math.abs(k) === 2 ? DASH.dot : []);
        this.path(c, at, day, i => day.vwap[i] + k * day.sd[i]);
      }
      c.setLineDash([]);
      c.globalAlpha = 1;
    }

    drawDeveloping(c, at, day) {
      c.strokeStyle = this.colour.dev;
      for (const name of at.narrow ? ['vpoc'] : ['vpoc', 'val', 'vah']) {
        c.lineWidth = name === 'vpoc' ? 2 : 1;
        c.setLineDash(name === 'vpoc' ? [] : DASH.dash);
        this.path(c, at, day, i => day.dev[name][i], true);
      }
      c.setLineDash([]);
    }

    // Letters from the left (collapsed) or each below its own half hour (split); blocks where letters would be too small.
    drawLetters(c, at, day) {
      const [low, masks, levels] = day.tpo, rows = Math.max(1, Math.ceil(9 / at.row)), thick = rows * at.row;
      const letters = at.step >= 6, wide = this.split ? at.step : Math.min(at.step, 10), left = at.left(day);
      c.textAlign = 'center';
      if (letters) c.font = `${Math.min(12, Math.max(8, Math.min(thick, at.step * 1.3)))}px ui-monospace, monospace`;
      for (let k = 0; k < masks.length; k += rows) {
        const tick = low + k, y = at.y(tick + (rows - 1) / 2);
        const poc = levels[0] >= tick && levels[0] < tick + rows, inside = tick + rows - 1 >= levels[1] && tick <= levels[2];
        c.fillStyle = poc ? this.colour.down : inside ? this.colour.row : this.colour.letter;
        let column = 0;
        for (let p = 0; p < 52; p++) {
          if (!masks.slice(k, k + rows).some(mask => Math.floor(mask / 2 ** p) % 2)) continue;
          const x = left + wide * ((this.split ? p : column) + .5);
          if (letters) c.fillText(LETTERS[p], x, y);
          else c.fillRect(x - wide / 2, y - thick / 2, Math.max(wide - .5, .5), Math.max(thick - 1, 1));
          column += 1;
        }
      }
      c.font = `11px ${this.font}`;
      c.textAlign = 'left';
    }

    drawFills(c, at, day) {
      for (const t of day.trades) {
        const x = at.x(day.start + day.at[t.in]);
        if (t.out !== null) {
          const end = at.x(day.start + day.at[t.out]), colour = t.won ? this.colour.win : this.colour.loss;
          c.strokeStyle = colour;
          c.lineWidth = 1.5;
          c.setLineDash(DASH.dot);
          c.beginPath();
          c.moveTo(x, at.y(t.entry));
          c.lineTo(end, at.y(t.exit));
          c.stroke();
          c.setLineDash([]);
          this.drawMark(c, end, at.y(t.exit), -t.side, colour);
          if (at.right(day) - at.left(day) > 90) this.drawText(c, t.r, end + 8, at.y(t.exit) - t.side * 2, colour);
        }
        this.drawMark(c, x, at.y(t.entry), t.side, this.colour.fill);
      }
    }

    drawMark(c, x, y, side, colour) {
      c.beginPath();
      c.moveTo(x, y);
      c.lineTo(x - 6, y + 11 * side);
      c.lineTo(x + 6, y + 11 * side);
      c.closePath();
      c.fillStyle = colour;
      c.strokeStyle = this.paper;
      c.lineWidth = 1.5;
      c.stroke();
      c.fill();
    }

    drawText(c, text, x, y, colour) {
      const width = c.measureText(text).width;
      c.fillStyle = this.paper;
      c.fillRect(x - 3, y - 7, width + 6, 14);
      c.fillStyle = colour;
      c.fillText(text, x, y);
    }

    // Names of the lines of the last session in sight, at the right edge, apart from one another.
    drawLabels(c, at, size) {
      const day = at.shown.filter(d => at.left(d) < .85 * size.width).pop();
      if (!day) return;
      const rows = day.lines.filter(line => this.drawn(at, day, line) && (line[0] !== 'naked' || line[4] >= day.at.length))
        .map(line => ({text: line[1], y: at.y(line[2]), colour: this.lineStyle(line)[0]}));
      const own = (values, suffix, colour) => ['vah', 'vpoc', 'val'].forEach(name => rows.push({text: name.toUpperCase() + suffix, y: at.y(values[name]), colour}));
      if (this.shownKind === 'tpo') ['TPO POC', 'TPO VAL', 'TPO VAH'].forEach((text, k) => rows.push({text, y: at.y(day.tpo[2][k]), colour: this.colour.row}));
      else if (this.on.profile || this.on.developing) own(day.own, this.replaying ? ' so far' : '', this.colour.dev);
      if (this.state.span) own(this.state.span, ' of the span', this.colour.span);
      const seen = rows.filter(row => row.y > 4 && row.y < size.height - 4).sort((a, b) => a.y - b.y);
      const places = apart(seen.map(row => row.y), 14);
      const sink = Math.max(0, (places[places.length - 1] ?? 0) - size.height + 8);
      const left = size.width - Math.max(0, ...seen.map(row => c.measureText(row.text).width)) - 6;
      c.lineWidth = 1;
      seen.forEach(({text, colour, y}, k) => {
        const own = places[k] - sink;
        c.fillStyle = this.paper;
        c.fillRect(left - 3, own - 7, size.width - left, 14);
        c.strokeStyle = c.fillStyle = colour;
        c.beginPath();
        c.moveTo(left - 24, y);
        c.lineTo(left - 18, y);
        c.lineTo(left - 4, own);
        c.stroke();
        c.fillText(text, left, own);
      });
    }

    drawDrag(c, size) {
      c.fillStyle = this.colour.span;
      c.globalAlpha = .15;
      c.fillRect(Math.min(...this.drag), 0, Math.abs(this.drag[1] - this.drag[0]), size.height);
      c.globalAlpha = 1;
    }

    // ---- what is under the pointer ----

    tell(logical) {
      const here = this.all?.[logical] ?? this.all?.[this.all.length - 1];
      if (!here) return;
      const {day, candle} = here, price = t => this.price(t * this.state.meta.tick);
      const i = candle.last, colour = candle.close >= candle.open ? 'vc-up' : 'vc-down';
      const part = (name, value, kind = '') => node('span', {class: kind}, node('i', {}, name), value);
      const parts = [node('b', {}, `${fullDay(candle.time)} ${clock(candle.time)} ET`)];
      for (const name of ['open', 'high', 'low', 'close']) parts.push(part(name[0].toUpperCase(), price(candle[name]), colour));
      parts.push(part('Vol', whole(candle.volume)));
      if (this.on.developing) for (const name of ['vpoc', 'vah', 'val']) parts.push(part(name.toUpperCase(), price(day.dev[name][i]), 'vc-dev'));
      if (this.on.vwap) parts.push(part('VWAP', price(day.vwap[i]), 'vc-vwap'));
      for (const t of day.trades) {
        if (day.at[t.in] === day.at[i]) parts.push(node('span', {}, t.told[0]));
        if (t.out !== null && day.at[t.out] === day.at[i]) parts.push(node('span', {}, t.told[1]));
      }
      this.legend.replaceChildren(...parts);
    }

    // ---- controls ----

    button(text, act, {title, pressed, disabled, name} = {}) {
      return node('button', {type: 'button', title, disabled: disabled ? '' : false, 'data-name': name ?? text, 'aria-pressed': pressed === undefined ? null : String(pressed), onclick: act}, text);
    }

    choice(label, options, chosen, act) {
      const buttons = options.map(([value, text]) => this.button(text, () => act(value), {pressed: value === chosen, name: `${label} ${text}`}));
      return node('span', {class: 'vc-group', role: 'group', 'aria-label': label}, label ? node('label', {}, label) : '', ...buttons);
    }

    list(label, options, chosen, act) {
      const select = node('select', {'aria-label': label, onchange: event => act(event.target.value)},
        ...options.map(([value, text]) => node('option', {value, selected: String(value) === String(chosen) ? '' : false}, text)));
      return node('span', {class: 'vc-group'}, node('label', {}, label), select);
    }

    local(what, change) {
      this.began = performance.now();
      change();
      this.controls();
      this.measure(what);
    }

    controls() {
      const {view, meta} = this.state, ask = (what, more) => () => this.request(what, more);
      const held = document.activeElement?.dataset?.name;
      const trades = {disabled: !meta.trades};
      const group = (...parts) => node('span', {class: 'vc-group'}, ...parts);
      const go = (text, to, title, more) => this.button(text, ask('go', {to}), {title, name: to, ...more});
      const rows = [];
      if (meta.python) {
        rows.push(group(go('←', 'previous session', 'previous session (←)'), go('→', 'next session', 'next session (→)')),
          group(node('input', {type: 'date', 'aria-label': 'date', value: view.date, min: meta.first, max: meta.last,
            onchange: event => event.target.value && this.request('set', {date: event.target.value})})),
          this.list('sessions', COUNTS.map(n => [n, n]), view.count, n => this.request('set', {count: Number(n)})));
      }
      rows.push(this.choice('', BARS, this.shownKind, kind => this.local(`bars ${kind}`, () => { this.kind = kind; this.rebuild(true); })));
      rows.push(group(go('‹ trade', 'previous trade', 'previous trade (p)', trades), go('trade ›', 'next trade', 'next trade (n)', trades),
        go('loss ›', 'next loss', 'next loss (l)', trades), ...(meta.python ? [go('widest', 'widest value area', 'session with the widest value area')] : [])));
      rows.push(this.replayGroup(view));
      if (meta.python) rows.push(...this.settings(view, meta));
      const layers = Object.entries(LAYERS).map(([name, text]) => [name, text]);
      rows.push(node('span', {class: 'vc-group vc-layers', role: 'group', 'aria-label': 'layers'}, ...layers.map(([name, text]) =>
        this.button(text, () => this.local(text, () => { this.on[name] = !this.on[name]; this.rebuild(false); }), {pressed: this.on[name], name: `show ${text}`})),
        ...(this.shownKind === 'tpo' ? [this.button('split', () => this.local('split', () => { this.split = !this.split; this.rebuild(false); }), {pressed: this.split})] : [])));
      rows.push(group(this.button('fit', () => this.local('fit', () => this.fit()), {title: 'show everything (0)'})));
      this.bar.replaceChildren(...rows);
      if (held) [...this.bar.querySelectorAll('[data-name]')].find(b => b.dataset.name === held)?.focus({preventScroll: true});
    }

    settings(view, meta) {
      const set = name => value => this.request('set', {[name]: value});
      const pairs = values => values.map(v => [v, v]);
      const shares = meta.shares.map(p => [p, `${+(100 * p).toFixed(1)}%`]);
      const composite = this.state.span
        ? this.button('composite ✕', () => this.request('span', {span: null}), {pressed: true, name: 'composite'})
        : this.button('composite', () => this.request('span', {span: this.everything()}), {title: 'profile of all sessions shown; or drag with Shift held', name: 'composite'});
      return [this.choice('spread', pairs(meta.spreads), view.spread, set('spread')), this.choice('VPOC', pairs(meta.pocs), view.poc, set('poc')),
        this.choice('area', pairs(meta.areas), view.area, set('area')), this.list('share', shares, view.pct, p => set('pct')(Number(p))),
        this.list('contract', pairs(meta.symbols), meta.symbol, set('contract')), node('span', {class: 'vc-group'}, composite)];
    }

    everything() {
      const last = this.days[this.days.length - 1];
      return {from: [this.days[0].date, 0], to: [last.date, last.bars.length - 1]};
    }

    replayGroup(view) {
      if (!this.replaying) return node('span', {class: 'vc-group'}, this.button('replay', () => this.replay(this.joined()), {title: 'replay the last session bar by bar (r)'}));
      return node('span', {class: 'vc-group', role: 'group', 'aria-label': 'replay'},
        this.button('−1', () => this.replay(Math.max(1, view.until - this.joined())), {title: 'one bar back (,)', name: 'bar back'}),
        this.button(this.timer ? 'pause' : 'play', () => this.play(), {title: 'play or pause (space)', name: 'play'}),
        this.button('+1', () => this.forward(), {title: 'one bar on (.)', name: 'bar on'}),
        this.button('✕', () => this.replay(null), {title: 'end of the replay (Escape)', name: 'end replay'}));
    }

    // Bars of the data in one candle.
    joined() {
      const bars = this.days[this.days.length - 1].bars, step = bars.length > 1 ? bars[1].time - bars[0].time : 60;
      const minutes = this.shownKind === 'tpo' ? 30 : this.shownKind;
      return Math.max(1, Math.round(60 * minutes / Math.max(step, 1)));
    }

    replay(until) { this.request('replay', {until}); }
    forward() { if (this.state.view.until != null) this.replay(this.state.view.until + (this.step ??= this.joined())); }

    play() {
      if (this.timer) return this.stop();
      this.timer = setInterval(() => this.state.ended ? this.stop() : !this.pending && this.forward(), 250);
      this.controls();
    }

    stop() {
      if (!this.timer) return;
      clearInterval(this.timer);
      this.timer = null;
      this.controls();
    }

    key(event) {
      if (['INPUT', 'SELECT'].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
      const kinds = {1: 1, 5: 5, 3: 30, t: 'tpo'}, {python, trades} = this.state.meta;
      const go = to => () => this.request('go', {to});
      const acts = {n: trades && go('next trade'), p: trades && go('previous trade'), l: trades && go('next loss'), 0: () => this.local('fit', () => this.fit()),
        ArrowLeft: go(python ? 'previous session' : 'previous trade'), ArrowRight: go(python ? 'next session' : 'next trade'),
        r: () => this.replaying || this.replay(this.joined()), ' ': () => this.replaying && this.play(),
        '.': () => this.forward(), ',': () => this.replaying && this.replay(Math.max(1, this.state.view.until - this.joined())),
        Escape: () => this.replaying ? this.replay(null) : this.state.span && this.request('span', {span: null})};
      if (event.key in kinds) acts[event.key] = () => this.local(`bars ${kinds[event.key]}`, () => { this.kind = kinds[event.key]; this.rebuild(true); });
      if (event.key === ' ' && event.target.tagName === 'BUTTON') return;  // presses it
      if (!acts[event.key]) return;
      event.preventDefault();
      event.stopPropagation();
      acts[event.key]();
    }

    // Drag with Shift held: the profile of that span. Without Shift the library moves the picture.
    select(event) {
      if (!event.shiftKey || !this.state?.meta.python) return;
      event.stopPropagation();
      event.preventDefault();
      if (event.type !== 'pointerdown') return;
      const left = this.box.getBoundingClientRect().left, start = event.clientX - left;
      this.drag = [start, start];
      const move = e => { this.drag[1] = e.clientX - left; this.over.update(); };
      const end = () => {
        window.removeEventListener('pointermove', move);
        const [a, b] = this.drag.sort((p, q) => p - q).map(x => Math.max(0, Math.min(this.all.length - 1, Math.round(this.chart.timeScale().coordinateToLogical(x)))));
        this.drag = null;
        this.over.update();
        this.request('span', {span: {from: [this.all[a].day.date, this.all[a].candle.first], to: [this.all[b].day.date, this.all[b].candle.last]}});
      };
      window.addEventListener('pointermove', move);
      window.addEventListener('pointerup', end, {once: true});
    }

    // One question at a time; of those asked meanwhile the last one is kept.
    request(what, more = {}) {
      if (this.pending && performance.now() - this.began < 5000) { this.next = [what, more]; return; }
      this.began = performance.now();
      this.pending = true;
      this.asked = more.to ?? `${what} ${Object.keys(more)[0] ?? ''}`;
      this.root.classList.add('vc-waiting');
      this.ask(what, more);
    }

    answer(state) {
      this.waiting = this.box.clientWidth ? null : state;  // not on the page yet
      if (this.waiting) return;
      this.show(state);
      if (this.pending) this.measure(this.asked);
      this.pending = false;
      this.root.classList.remove('vc-waiting');
      const next = this.next;
      this.next = null;
      if (next) this.request(...next);
    }

    // From the click to the picture on the screen, in milliseconds; the tests read it.
    measure(what) {
      const began = this.began;
      requestAnimationFrame(() => requestAnimationFrame(() => {
        this.root.dataset.took = `${what}: ${(performance.now() - began).toFixed(1)}`;
        this.root.dataset.drawn = Number(this.root.dataset.drawn ?? 0) + 1;
      }));
    }

    write() {
      const {words = [], table, note = '', error} = this.state;
      const sentences = words.map(text => node('p', {}, text));
      if (table) sentences.push(node('table', {}, ...table.map((row, k) => node('tr', {}, ...row.map(text => node(k ? 'td' : 'th', {}, text))))));
      this.words.replaceChildren(...sentences);
      this.note.classList.toggle('vc-error', Boolean(error));
      this.note.textContent = error ?? note;
    }
  }

  // ---- the page of a report: every session with a trade is in the page, packed ----

  async function inflated(text) {
    const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).json();
  }

  function page(root, data) {
    const dates = data.sessions.map(s => s.date);
    let at = -1, day = null;
    const replayed = until => {
      const known = Math.min(until, day.v.length), {time} = chart.unpacked.get(day).bars[known - 1];
      const words = [...day.order, `Replay: ${whole(known)} bars are known, up to that of ${clock(time)} ET.`];
      return {ended: until >= day.v.length, words, table: []};
    };
    const answer = until => {
      const said = until === null ? {ended: true, words: day.words, table: day.table} : replayed(until);
      chart.answer({meta: data.meta, view: {date: day.date, count: 1, until}, days: [day], ...said});
    };
    const show = async number => {
      if (!data.sessions[number]) return chart.answer({...chart.state, note: 'There is no such session in this page.'});
      day = await inflated(data.sessions[number].packed);
      at = number;
      answer(null);
      root.dispatchEvent(new CustomEvent('session', {bubbles: true, detail: {date: day.date}}));
    };
    const chart = new Chart(root, (what, {to, until}) => {
      if (what === 'replay') return answer(until);
      const loss = to === 'next loss', step = to === 'previous trade' ? -1 : 1;
      let next = at + step;
      while (loss && data.sessions[next] && !data.sessions[next].loss) next += step;
      show(next);
    });
    document.addEventListener('click', event => {
      const row = event.target.closest?.('[data-session]');
      if (!row || !dates.includes(row.dataset.session)) return;
      chart.began = performance.now();
      chart.pending = true;
      chart.asked = 'click on a trade';
      show(dates.indexOf(row.dataset.session));
    });
    show(data.begin ?? dates.length - 1);
    return chart;
  }

  return {Chart, page, unpack, knownAfter};
})();
