"""Chain-of-Table: the model transforms a table, operation by operation, until a small one is left to answer from.

In each step it names the next operation, given the table, the question and what was done, and then its arguments; the
operation is carried out on the real table (pandas).  Operations are those of the paper: ``add_column``, ``select_row``,
``select_column``, ``group_by``, ``sort_by``, and END.  An operation whose arguments do not fit the table is noted and ends
the chain.

Calls: 2 for each step, 1 for END, 1 for the answer.  Source: Wang et al., "Chain-of-table: evolving tables in the reasoning
chain for table understanding", ICLR 2024, arXiv 2401.04398.  *Departures*: our own wording and one example for each
operation instead of the paper's several.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from cuelight.errors import DataError
from cuelight.methods.strategy import Run, StrategyCard, strategy

if TYPE_CHECKING:
    import pandas as pd

OPERATIONS = {
    "add_column": "a new column computed from others; arguments: a name, then one value a row: Country: Spain; Italy; Italy",
    "select_row": "only some rows; arguments: their numbers: 1, 3",
    "select_column": "only some columns; arguments: their names: Name, Year",
    "group_by": "how often each value of a column occurs; argument: the column: Country",
    "sort_by": "rows in the order of a column; arguments: the column and ascending or descending: Year, descending",
}


@strategy(
    StrategyCard(
        name="chain-of-table",
        title="Chain-of-Table prompting",
        group="reasoning",
        calls="2 for each step, 1 for END, 1 for the answer",
        paper="Wang et al., Chain-of-table: evolving tables in the reasoning chain for table understanding",
        arxiv="2401.04398",
        year=2024,
        acquired="manual",
        turns="multi",
        shown_on="GPT-3.5, Llama-2",
    )
)
def chain_of_table(
    run: Run,
    question: str,
    *,
    table: Annotated[
        Any, Field(description="The table: a CSV, TSV, JSON or Parquet file; in Python a DataFrame too.")
    ],
    steps: Annotated[int, Field(ge=0, description="Most operations.")] = 5,
) -> str | None:
    frame = _read(table)
    told = "\n".join(f"{name}: {says}" for name, says in OPERATIONS.items())
    done: list[str] = []
    for _ in range(steps):
        history = " -> ".join(done) or "nothing yet"
        head = f"Table:\n{shown(frame)}\nQuestion: {run.asked}\nDone: {history}\n"
        said = run.ask(
            f"Operations:\n{told}\nEND: the table shows the answer\n\n{head}Next operation:",
            "operation",
            max_tokens=24,
        )
        found = re.search("|".join([*OPERATIONS, "END"]), said)
        name = found[0] if found else "END"
        if name == "END":
            break
        given = run.ask(
            f"{head}Operation: {name} ({OPERATIONS[name]})\nArguments:",
            "arguments",
            stop=("\n",),
            max_tokens=200,
        )
        given = given.strip().removeprefix(name).strip("() ")
        try:
            frame = operate(frame, name, given)
        except DataError as error:
            run.note("refused", str(error))
            break
        done.append(f"{name}({given})")
        run.note("table", shown(frame), operation=name, arguments=given, rows=len(frame))
    prompt = f"Table:\n{shown(frame)}\nQ: {run.asked}\n{run.form}\nA:"
    return run.parse(run.ask(prompt, "answer"))


def _read(table: Any) -> pd.DataFrame:
    import pandas as pd

    from cuelight.data.files import read_frame

    if isinstance(table, pd.DataFrame):
        return table.reset_index(drop=True)
    if isinstance(table, str | Path):
        return read_frame(Path(table))
    return pd.DataFrame(list(table))


def shown(frame: pd.DataFrame, most: int = 30) -> str:
    """The table as text: a head line, then one line a row with its number."""
    lines = [" | ".join(["row", *map(str, frame.columns)])]
    for k, row in enumerate(frame.head(most).itertuples(index=False), 1):
        lines.append(" | ".join([str(k), *map(str, row)]))
    if len(frame) > most:
        lines.append(f"... {len(frame) - most} more rows")
    return "\n".join(lines)


def operate(frame: pd.DataFrame, name: str, given: str) -> pd.DataFrame:
    """The table after one operation.

    Raises:
        DataError: the arguments do not fit the table.
    """
    if name == "add_column":
        title, colon, values = given.partition(":")
        cells = [v.strip() for v in re.split(r"[;|]" if re.search(r"[;|]", values) else ",", values)]
        if not colon or len(cells) != len(frame):
            raise DataError(f"add_column: {len(cells)} values for {len(frame)} rows")
        return frame.assign(**{title.strip(): cells})
    if name == "select_row":
        rows = [int(n) - 1 for n in re.findall(r"\d+", given)]
        kept = [k for k in dict.fromkeys(rows) if 0 <= k < len(frame)]
        if not kept:
            raise DataError(f"select_row: '{given}' names no row of the table")
        return frame.iloc[kept].reset_index(drop=True)
    if name == "select_column":
        columns = [c for part in given.split(",") if (c := _column(frame, part)) is not None]
        if not columns:
            raise DataError(f"select_column: '{given}' names no column of the table")
        return frame[list(dict.fromkeys(columns))]
    column = _column(frame, given.split(",")[0])
    if column is None:
        raise DataError(f"{name}: '{given}' names no column of the table")
    if name == "group_by":
        counts = frame[column].value_counts(sort=True)
        return counts.rename("count").rename_axis(column).reset_index()
    key = _numbers(frame[column])
    order = key.sort_values(ascending="desc" not in given.lower(), kind="stable").index
    return frame.loc[order].reset_index(drop=True)


def _column(frame: pd.DataFrame, text: str) -> Any:
    by_name = {str(c).strip().lower(): c for c in frame.columns}
    return by_name.get(text.strip(" '\"").lower())


def _numbers(column: pd.Series) -> pd.Series:
    """A column by its numbers where all its cells are numbers, as it is otherwise."""
    import pandas as pd

    found = pd.to_numeric(column.astype(str).str.replace(r"[,$%\s]", "", regex=True), errors="coerce")
    return column.astype(str) if found.isna().any() else found
