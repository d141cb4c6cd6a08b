"""Captions of pictures that consist of text: tables, charts, plans, timetables. They are good, and look repetitive.

Every function returns one caption. The values are random, the form is what captioning models write.
"""

import random
from collections.abc import Callable

MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
COLOURS = "blue orange green red purple grey teal brown yellow pink navy".split()
REGIONS = (
    *(
        "Northern Europe",
        "Western Europe",
        "South Asia",
        "East Africa",
        "Central America",
        "Oceania",
        "the Gulf states",
    ),
    *("the Baltic states", "Japan", "Brazil", "Canada", "Turkey", "Vietnam", "Morocco", "Chile", "Poland"),
)
PRODUCTS = (
    *(
        "Wool blanket",
        "Desk lamp",
        "Enamel mug",
        "Oak shelf",
        "Linen apron",
        "Garden hose",
        "Wall clock",
        "Bread knife",
    ),
    *(
        "Candle holder",
        "Door mat",
        "Paper tray",
        "Steel kettle",
        "Cork board",
        "Bath towel",
        "Picture frame",
        "Step stool",
    ),
)
PLACES = (
    *("Central Station", "Mill Lane", "Harbour Gate", "St. Anne's Hospital", "University", "Old Brewery", "Fairground"),
    *("Rose Hill", "Town Hall", "Kingsbridge", "Airport", "Zoo", "Lakeside", "Garden City", "Eastfield", "Quarry Road"),
)
PEOPLE = (
    "Amara Bjorn Chiara Dmitri Esra Farid Greta Hiro Ines Jonas Kavya Leif Mina Noor Otto Paula Quentin Rosa".split()
)


def bar_sentences(r: random.Random) -> str:
    """A bar chart, one templated sentence a bar."""
    first, unit, what = r.randint(1985, 2012), r.choice(["million", "thousand", "per cent"]), r.choice(REGIONS)
    subject = r.choice(
        ["exports of coffee", "visitors to national parks", "households with a bicycle", "new dwellings"]
    )
    lines = [
        f'The image is a vertical bar chart titled "{subject.capitalize()} in {what}". The x-axis represents the years, '
        f"and the y-axis the value in {unit}, with ticks at 0, 10, 20, 30, 40 and 50."
    ]
    value = r.uniform(8, 20)
    for year in range(first, first + r.randint(9, 24)):
        value = max(1.0, value + r.uniform(-4, 5))
        lines.append(f"The bar for {year} is {r.choice(COLOURS[:3])} and reaches {value:.1f} {unit}.")
    lines.append(
        "Overall, the values fluctuate, but the later bars are higher than the earlier ones. There is no legend."
    )
    return " ".join(lines)


def grouped_bars(r: random.Random) -> str:
    """A grouped bar chart as a nested markdown list."""
    groups, series = r.sample(REGIONS, r.randint(4, 7)), r.sample(COLOURS, 3)
    years = [r.randint(2000, 2010), r.randint(2011, 2017), r.randint(2018, 2023)]
    lines = [
        "The image displays a **grouped bar chart** that compares the share of renewable electricity.\n",
        "### Axes\n- **X-axis**: regions\n- **Y-axis**: share in per cent, from 0 to 80 in steps of 20\n\n### Data",
    ]
    for group in groups:
        lines.append(f"- **{group[0].upper()}{group[1:]}**:")
        lines += [
            f"  - {year} ({colour} bar): approximately {r.randint(3, 79)}%"
            for year, colour in zip(years, series, strict=True)
        ]
    lines.append("\n### Summary\nThe most recent bar is the highest one in most of the regions that are shown.")
    return "\n".join(lines)


def chart_table(r: random.Random) -> str:
    """A line chart that is read out as a table of months."""
    a, b = r.sample(PLACES, 2)
    rows = [f"| {m} | {r.uniform(-5, 28):.1f} | {r.uniform(-5, 28):.1f} | {r.randint(20, 140)} |" for m in MONTHS]
    return (
        f"The line chart compares the mean temperature at two weather stations, **{a}** (solid line) and **{b}** (dashed "
        f"line), and shows the rainfall as bars in the background. The approximate values are:\n\n"
        f"| Month | {a} (°C) | {b} (°C) | Rainfall (mm) |\n|---|---|---|---|\n" + "\n".join(rows) + "\n\nThe two lines "
        "cross twice, in spring and in autumn. A note below the chart names the years 1991 to 2020 as the period."
    )


def spreadsheet(r: random.Random) -> str:
    """A spreadsheet with many equal cells."""
    rows = [
        f"| {4000 + n} | {r.choice(PRODUCTS)} | {r.randint(0, 60)} | {r.choice(['Open', 'Open', 'Open', 'Shipped'])} "
        f"| 0.00 | No |"
        for n in range(r.randint(12, 38))
    ]
    return (
        "This is a screenshot of a spreadsheet in a window with a green title bar. The visible cells are:\n\n"
        "| Order | Item | Quantity | Status | Discount | Gift |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + '\n\nThe cell C2 is selected. Two further sheets, "Returns" and "Archive", can be reached by tabs at the bottom.'
    )


def empty_cells(r: random.Random) -> str:
    """A planner whose cells are mostly empty."""
    rows = []
    for hour in range(8, 8 + r.randint(9, 13)):
        cells = [r.choice(["", "", "", "", "gym", "call", "lunch", "dentist", "choir"]) for _ in range(5)]
        rows.append(f"| {hour}:00 | " + " | ".join(cells) + " |")
    return (
        "The photograph shows a weekly planner on a refrigerator door, held by a magnet in the form of a lemon. The table "
        "has five columns for the working days, and most of its cells are empty:\n\n"
        "| | Mon | Tue | Wed | Thu | Fri |\n|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n\nThe entries are "
        "written with a blue marker; one of them has been crossed out and is not legible."
    )


def timetable(r: random.Random) -> str:
    """A timetable with even intervals."""
    minutes, step = r.randint(0, 14), r.choice([10, 15, 20])
    lines = []
    for place in r.sample(PLACES, r.randint(5, 8)):
        minutes += r.randint(2, 6)
        lines.append(
            f"**{place}**: "
            + ", ".join(f"{h:02d}:{(minutes + k * step) % 60:02d}" for h in (6, 7, 8) for k in range(60 // step))
        )
    return (
        f"The image is a photograph of a bus timetable behind scratched acrylic glass. The line number, {r.randint(2, 98)}, is "
        f"printed in white on a red square. Buses run every {step} minutes. The departures in the morning are:\n\n"
        + "\n\n".join(lines)
        + "\n\nA sticker with the picture of a cat covers the column for Sundays."
    )


def seat_map(r: random.Random) -> str:
    """Rows of seats that are free or taken."""
    lines = []
    for row in range(1, r.randint(12, 24)):
        taken = [letter for letter in "ABCDEF" if r.random() < 0.5]
        lines.append(f"Row {row}: " + ", ".join(f"{c} {'taken' if c in taken else 'free'}" for c in "ABCDEF") + ".")
    return (
        "The screenshot shows the seat map of a small aeroplane in a booking app. Free seats are green, taken seats are "
        "grey, and each row has six seats with an aisle between C and D. From front to back:\n\n"
        + "\n".join(lines)
        + '\n\nSeats at the two exits are marked with a star. The button at the bottom says "Continue without a seat".'
    )


def rooms(r: random.Random) -> str:
    """A floor plan as a list of rooms."""
    kinds = ["office", "office", "office", "meeting room", "store", "kitchen", "toilet", "server room"]
    lines = [
        f"- Room {r.randint(1, 4)}{n:02d}: {r.choice(kinds)}, {r.randint(6, 60)} m²"
        for n in range(1, r.randint(15, 34))
    ]
    return (
        "The image shows the floor plan of an office building, drawn in black lines on white. A corridor runs through the "
        "middle, and the rooms on both sides are labelled with number, use and area:\n\n"
        + "\n".join(lines)
        + "\n\nEmergency exits are marked in green at both ends of the corridor. An arrow in the corner points north."
    )


def hundred(r: random.Random) -> str:
    """A chart of the numbers up to a hundred, as in classrooms."""
    by = r.choice([3, 4, 6, 7])
    rows = "\n".join(", ".join(str(n) for n in range(row, row + 10)) for row in range(1, 101, 10))
    return (
        "A poster in a classroom shows the numbers from 1 to 100 in ten rows of ten squares:\n\n"
        + rows
        + f"\n\nThe multiples of {by} are coloured {r.choice(COLOURS)}, so that a pattern of diagonals appears. In the lower corner "
        "an owl with glasses points at the poster with its wing, and the four edges are held by blue tack."
    )


def calendar(r: random.Random) -> str:
    """A month as a table."""
    month, start, days = r.choice(MONTHS), r.randint(0, 6), r.choice([30, 31])
    cells = [""] * start + [str(d) for d in range(1, days + 1)]
    cells += [""] * (-len(cells) % 7)
    rows = "\n".join("| " + " | ".join(cells[k : k + 7]) + " |" for k in range(0, len(cells), 7))
    return (
        f"The picture shows the calendar page for {month}, with a photograph of a waterfall in its upper half. The days are "
        "set out like this:\n\n| "
        + " | ".join(d[:3] for d in DAYS)
        + " |\n|---|---|---|---|---|---|---|\n"
        + rows
        + f'\n\nThe {r.randint(2, 28)}th is circled in red, and "Mum\'s birthday" is written next to it by hand. Sundays are red.'
    )


def receipt(r: random.Random) -> str:
    """A receipt, line by line."""
    items = [(r.choice(PRODUCTS), r.randint(1, 4), r.uniform(1, 40)) for _ in range(r.randint(6, 16))]
    lines = [f"{name:<16} {n} x {price:6.2f}   {n * price:7.2f}" for name, n, price in items]
    total = sum(n * price for _, n, price in items)
    return (
        "A crumpled till receipt lies on a marble table top. It is headed by the logo of the shop, a pair of scissors, and "
        'the address "14 Dyer\'s Row". The printed lines are:\n\n```\n'
        + "\n".join(lines)
        + f'\n{"-" * 38}\n{"TOTAL":<28} {total:9.2f}\n```\n\nThe receipt ends with the words "Thank you, come again" and a '
        "barcode whose right half has faded."
    )


def log_lines(r: random.Random) -> str:
    """A terminal with a log."""
    lines = [
        f"2024-0{r.randint(1, 9)}-1{r.randint(0, 9)} 0{r.randint(0, 9)}:{r.randint(10, 59)}:{r.randint(10, 59)} "
        f"{r.choice(['INFO', 'INFO', 'INFO', 'WARN'])}  worker-{r.randint(1, 8)}  "
        f"{r.choice(['finished shard', 'finished shard', 'retrying shard', 'opened shard'])} {r.randint(100, 999)}"
        for _ in range(r.randint(14, 34))
    ]
    return (
        "The image is a screenshot of a terminal with light text on a dark background. It shows a log:\n\n```\n"
        + "\n".join(lines)
        + '\n```\n\nThe cursor blinks in the last line, and the window\'s title is "tail -f run.log".'
    )


def people_row(r: random.Random) -> str:
    """A group photograph, one sentence a person."""
    ordinals = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
    garments = ["a white shirt", "a striped jumper", "a denim jacket", "a green coat", "a black dress", "a red scarf"]
    traits = [
        "is laughing",
        "looks to the left",
        "has crossed arms",
        "holds a cup",
        "wears round glasses",
        "has closed eyes",
    ]
    lines = [f"The {o} person wears {r.choice(garments)} and {r.choice(traits)}." for o in ordinals[: r.randint(8, 12)]]
    return (
        "A group photograph in front of a brick wall. The people stand in one row and are described from left to right. "
        + " ".join(lines)
        + " The light is even, and the shadows of leaves fall on the wall. A drain pipe runs down at the right."
    )


def chess(r: random.Random) -> str:
    """A chess diagram, rank by rank."""
    back = "rook, knight, bishop, queen, king, bishop, knight and rook"
    moved = r.choice(["e4", "d4", "c4"])
    return (
        "The diagram shows a chessboard after the first move. The squares are cream and brown, the coordinates are printed "
        f"along two sides.\n\n- Rank 8: black {back}\n- Rank 7: eight black pawns\n- Rank 6: empty\n- Rank 5: empty\n"
        f"- Rank 4: one white pawn on {moved}\n- Rank 3: empty\n- Rank 2: seven white pawns\n- Rank 1: white {back}\n\nAn "
        f'arrow in {r.choice(COLOURS)} shows where the pawn has come from. The caption under the diagram reads "Position '
        f'{r.randint(1, 60)}", and a clock next to the board stands at {r.randint(1, 9)}:{r.randint(10, 59)} for Black.'
    )


def matrix(r: random.Random) -> str:
    """A confusion matrix with many zeros."""
    names = r.sample(["cat", "dog", "fox", "owl", "hare", "deer", "boar", "lynx", "wolf", "bear"], r.randint(6, 9))
    rows = []
    for i, name in enumerate(names):
        cells = [str(r.randint(80, 99)) if i == j else r.choice(["0", "0", "0", "1", "2"]) for j in range(len(names))]
        rows.append(f"| **{name}** | " + " | ".join(cells) + " |")
    return (
        "The figure is a confusion matrix, drawn as a grid in shades of blue. Rows are the true classes, columns the "
        "predicted ones:\n\n| | "
        + " | ".join(names)
        + " |\n|"
        + "---|" * (len(names) + 1)
        + "\n"
        + "\n".join(rows)
        + "\n\nThe diagonal is dark, which means that most of the pictures are classified correctly. A colour bar is at the right."
    )


def emoji_grid(r: random.Random) -> str:
    """The result of a word game."""
    rows = "\n".join("".join(r.choice("⬛⬛🟨🟩") for _ in range(5)) for _ in range(r.randint(3, 5)))
    return (
        f'The screenshot shows a message with the result of a daily word game. The first line reads "Game {r.randint(200, 999)} '
        f'5/6", and below it stands a grid of coloured squares:\n\n{rows}\n🟩🟩🟩🟩🟩\n\n{r.choice(PEOPLE)} has answered with '
        '"so close to four!!" and a picture of a trophy. The bubble is green, the background has a pattern of doodles.'
    )


def genealogy(r: random.Random) -> str:
    """A family tree, whose sentences are alike."""
    names = r.sample(PEOPLE, 14)
    lines = [
        f"{a} ({r.randint(1820, 1990)}) is joined by a line to {b} ({r.randint(1820, 1990)}), and a line leads from them to {c}."
        for a, b, c in zip(names, names[1:], names[2:], strict=False)
    ]
    return (
        "A family tree is drawn in brown ink on parchment. Each name stands in a leaf with a year below it. "
        + " ".join(lines)
        + " The root of the tree is wrapped in a ribbon with a motto that is too faded to be read."
    )


READ_OUT: tuple[Callable[[random.Random], str], ...] = (
    *(
        bar_sentences,
        grouped_bars,
        chart_table,
        spreadsheet,
        empty_cells,
        timetable,
        seat_map,
        rooms,
        hundred,
        calendar,
    ),
    *(receipt, log_lines, people_row, chess, matrix, emoji_grid, genealogy),
)
