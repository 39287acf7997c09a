"""A bracket-order backtest in plain Python: slow, short, meant to be read.

Every rule is written once, for a long. A short is a long in a market turned upside down:
multiply all prices by side (-1), and high and low change places. Prices are compared as they are,
so the tick must be one that floating point knows exactly, such as 0.25.

An order may carry, beside date, side, entry, stop, target and size_factor: `contracts` (how many; NaN or
absent: sized by risk), `active_from` (a time; NaT or absent: the session's first bar), and NaN as its
entry, which makes it a market order.
"""
from math import floor, isnan


def given(value):
    "Whether an optional field of an order is there: not absent, None, NaN or NaT."
    return value is not None and value == value


def plain_backtest(bars, signals, *, initial_capital=100_000., commission_per_trade=10.,
                   fees_per_contract=0., slippage_ticks=1, risk_per_trade=0.01, day_margin=0.10,
                   overnight_margin=0.15, free_capital=0.20, max_contracts=10, limit_through=1,
                   ambiguous='stop', hold='session', tick=0.25, point_value=50.):
    slip, through = slippage_ticks * tick, limit_through * tick
    margin = {'session': day_margin, 'overnight': overnight_margin}[hold]

    def view(bar, side):                             # open, high, low, close as a long sees them
        o, h, l, c = bar['open'], bar['high'], bar['low'], bar['close']
        return (o, h, l, c) if side > 0 else (-o, -l, -h, -c)

    def size(order, cash):                           # (contracts, None), or (.., why not)
        if cash <= 0:
            return 0, 'no equity left'
        by_margin = floor(cash * (1 - free_capital) / (abs(order['entry']) * point_value * margin) + 1e-9)
        if given(order.get('contracts')):            # all that it names, or none
            n = int(order['contracts'])
            if n > max_contracts:
                return n, 'more contracts than max_contracts'
            return n, 'margin affords fewer contracts' if n > by_margin else None
        per_contract = (order['entry'] - order['stop'] + slip) * point_value + 2 * fees_per_contract
        budget = risk_per_trade * cash * order['size_factor'] / 1.5 - commission_per_trade
        by_risk = floor(budget / per_contract + 1e-9)
        reason = None
        if by_risk < 1:
            reason = 'risk affords no contract'
        elif by_margin < 1:
            reason = 'margin affords no contract'
        return min(by_risk, by_margin, max_contracts), reason

    def bracket(pos, o, h, l, first):                # (price, reason, ambiguous), or None: the trade goes on
        stop, target = pos['stop'], pos['target']
        if o <= stop:
            return o - slip, 'stop', False
        if o >= target + through and not first:
            return o, 'target', False
        stop_hit, target_hit = l <= stop, h >= target + through and not first
        both = stop_hit and target_hit
        target_wins = ambiguous == 'target' or ambiguous == 'path' and o - l > h - o
        if stop_hit and not (both and target_wins):
            return stop - slip, 'stop', both
        return (max(target, o), 'target', both) if target_hit else None

    def excursion(pos, worst, best):
        pos['mae'], pos['mfe'] = max(pos['mae'], pos['fill'] - worst), max(pos['mfe'], best - pos['fill'])

    def close_out(pos, i, price, reason, both):      # the finished trade
        excursion(pos, price, price)
        n, side = pos['n'], pos['side']
        gross = (price - pos['fill']) * n * point_value
        costs = commission_per_trade + 2 * fees_per_contract * n
        lost = (pos['slipped'] + (0. if reason == 'target' else slip)) * n * point_value
        return dict(signal=pos['signal'], date=pos['date'], side=side, contracts=n,
                    entry_ts=tape[pos['bar']]['ts'], entry=side * pos['fill'], exit_ts=tape[i]['ts'],
                    exit=side * price, exit_reason=reason, gross=gross, costs=costs, net=gross - costs,
                    r_multiple=(gross - costs) / ((pos['entry'] - pos['stop']) * n * point_value),
                    mae=pos['mae'], mfe=pos['mfe'], bars=i - pos['bar'] + 1, ambiguous=both, slippage=lost)

    tape = [dict(row, ts=ts) for ts, row in zip(bars.index, bars.to_dict('records'))]
    first_rth, last_rth = {}, {}                     # bar numbers by date; a session is a date with RTH bars
    for i, bar in enumerate(tape):
        if bar['segment'] == 'RTH':
            first_rth.setdefault(bar['date'], i)
            last_rth[bar['date']] = i
    rolls = {i for i in range(len(tape) - 1) if tape[i].get('contract') != tape[i + 1].get('contract')}
    orders = [dict(row, signal=k, blocked=False) for k, row in enumerate(signals.to_dict('records'))]
    for order in orders:                             # from here on an order's prices are a long's, too
        order.update({key: order['side'] * order[key] for key in ('entry', 'stop', 'target')})
        order['market'] = isnan(order['entry'])
    why = {o['signal']: 'no such session' for o in orders if o['date'] not in last_rth}    # skipped, and why
    starts = {}                                      # bar number: the orders that begin to work there
    for order in orders:
        if order['signal'] in why:
            continue
        i, last = first_rth[order['date']], last_rth[order['date']]
        while given(order.get('active_from')) and i <= last and tape[i]['ts'] < order['active_from']:
            i += 1
        if i > last:
            why[order['signal']] = 'no bar left to work in'
        else:
            starts.setdefault(i, []).append(order)
    cash, pos, waiting, trades, equity = initial_capital, None, [], [], []

    for i, bar in enumerate(tape):
        at_once = []                                 # orders that would be filled at this very open
        for order in starts.get(i, []):              # they begin to work: place them
            o = view(bar, order['side'])[0]
            if order['market']:
                order['entry'] = o + slip
            if cash > 0 and o <= order['stop']:
                reason = 'stop behind the market'
            elif cash > 0 and order['market'] and o + slip >= order['target']:
                reason = 'target behind the market'
            else:
                reason = size(order, cash)[1]
            if reason:
                why[order['signal']] = reason
            elif order['market'] or o < order['entry']:
                at_once.append(order)
            else:
                waiting.append(order)
        if at_once and pos is None:                  # the first of them takes liquidity
            order = at_once.pop(0)
            o = view(bar, order['side'])[0]
            fill = min(o + slip, order['entry'])
            pos = dict(order, n=size(order, cash)[0], fill=fill, slipped=fill - o, bar=i, mae=0., mfe=0.)
        for order in at_once:                        # the others find a position open
            if order['market']:
                why[order['signal']] = 'another position open'
            else:
                order['blocked'] = True
                waiting.append(order)
        reached = [order for order in waiting if bar['segment'] == 'RTH'
                   and view(bar, order['side'])[2] <= order['entry'] - through]
        if reached and pos is None:                  # the nearest limit fills; of equals, the earlier row
            order = min(reached, key=lambda o: (abs(o['entry'] - view(bar, o['side'])[0]), o['signal']))
            waiting.remove(order)
            n, reason = size(order, cash)
            if reason:
                why[order['signal']] = reason
            else:
                fill = min(order['entry'], view(bar, order['side'])[0])
                pos = dict(order, n=n, fill=fill, slipped=0., bar=i, mae=0., mfe=0.)
        if pos is not None:
            for order in reached:                    # (for the order just filled this no longer matters)
                order['blocked'] = True
            (o, h, l, c), first = view(bar, pos['side']), i == pos['bar']
            end = bracket(pos, o, h, l, first)
            if end is None:                          # it survives the bar, unless its time is up
                excursion(pos, l, c if first else h)
                clock = None
                if hold == 'session' and i == last_rth[bar['date']]:
                    clock = 'close'
                elif i in rolls:
                    clock = 'roll'
                elif i == len(tape) - 1:
                    clock = 'end'
                end = clock and (c - slip, clock, False)
            if end is not None:
                trades.append(close_out(pos, i, *end))
                cash, pos = cash + trades[-1]['net'], None
        if i == last_rth.get(bar['date']):           # the session ends: drop what waits, note the equity
            for order in waiting:
                why[order['signal']] = 'another position open' if order['blocked'] else 'not reached'
            waiting = []
            equity.append(cash + ((c - pos['fill']) * pos['n'] * point_value if pos else 0.))
    equity[-1:] = [cash] if equity else []           # the very last value: after the frame's last bar
    return trades, [dict(signal=k, reason=why[k]) for k in sorted(why)], equity
