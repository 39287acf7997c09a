// Show the session under the pointer, or the one reached with the arrow keys, in the chart before this script.
{
  const figure = document.currentScript.previousElementSibling;
  const told = figure.querySelector('output');
  const plots = figure.querySelectorAll('.plot');
  const data = JSON.parse(figure.querySelector('script').textContent);
  const last = data.dates.length - 1;
  let at = last;

  const minus = text => text.replace('-', '−');
  const money = v => (v < 0 ? '−$' : '$') + Math.abs(v).toLocaleString('en-US', {maximumFractionDigits: 0});
  const account = (name, k) => `${name} ${money(data.equity[k][at])} (${minus(data.drawdown[k][at].toFixed(1))}%)`;

  const show = i => {
    at = Math.max(0, Math.min(last, i));
    told.textContent = data.dates[at] + ': ' + data.names.map(account).join(', ');
    plots.forEach(p => p.style.setProperty('--at', 100 * at / (last || 1) + '%'));
    figure.classList.add('on');
  };

  const follow = event => {
    const box = event.currentTarget.getBoundingClientRect();
    show(Math.round((event.clientX - box.left) / box.width * last));
  };
  plots.forEach(p => p.addEventListener('pointermove', follow));
  figure.addEventListener('pointerleave', () => figure.classList.remove('on'));
  figure.addEventListener('keydown', event => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!step) return;
    event.preventDefault();
    show(at + step * (event.shiftKey ? 20 : 1));
  });
}
