"use strict";
/* Tables that sort by a click on a heading, and the filters of the table of cases. No library. */

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, index) => {
    const button = head.querySelector("button");
    if (button) button.addEventListener("click", () => sort(table, heads, body, index));
  });
}

function sort(table, heads, body, index) {
  const head = heads[index];
  const number = head.classList.contains("number");
  // Figures are first asked for from the highest, names from A.
  const first = number ? "descending" : "ascending";
  const other = number ? "ascending" : "descending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  for (const each of heads) each.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;
  const keyed = [...body.rows].map((row) => ({ row, key: keyOf(row.cells[index], number) }));
  keyed.sort((one, two) => {
    const oneEmpty = one.key === null, twoEmpty = two.key === null;
    if (oneEmpty || twoEmpty) return oneEmpty - twoEmpty; // what has no value stays at the end
    return sign * (number ? one.key - two.key : compare(one.key, two.key));
  });
  body.append(...keyed.map(({ row }) => row));
}

function keyOf(cell, number) {
  if (!number) return cell.textContent.trim();
  const value = parseFloat(cell.dataset.value);
  return Number.isFinite(value) ? value : null;
}

const form = document.querySelector("form[data-filters]");
if (form) {
  const table = document.getElementById(form.dataset.filters);
  const rows = [...table.tBodies[0].rows];
  const text = new Map(rows.map((row) => [row, `${row.cells[1].textContent} ${row.cells[2].textContent}`.toLowerCase()]));
  const heads = [...table.tHead.rows[0].cells];

  const filter = () => {
    const { text: search, status, column, low, high } = form.elements;
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const key = column.selectedOptions[0]?.dataset.key;
    const index = heads.findIndex((head) => head.dataset.key === key);
    const least = low.value === "" ? -Infinity : low.valueAsNumber;
    const most = high.value === "" ? Infinity : high.valueAsNumber;
    const bounded = low.value !== "" || high.value !== "";
    let shown = 0;
    for (const row of rows) {
      const value = bounded && index >= 0 ? parseFloat(row.cells[index].dataset.value) : 0;
      const fits = words.every((word) => text.get(row).includes(word))
        && (status.value === "" || row.dataset.status === status.value)
        && (!bounded || (value >= least && value <= most));
      row.hidden = !fits;
      shown += fits;
    }
    form.querySelector(".count").textContent = `${shown} of ${rows.length} cases`;
    form.parentElement.querySelector(".empty").hidden = shown > 0;
  };

  const columns = () => {
    for (const box of form.querySelectorAll("input[name=show]")) {
      const index = heads.findIndex((head) => head.dataset.key === box.value);
      for (const row of [table.tHead.rows[0], ...rows]) row.cells[index].hidden = !box.checked;
    }
  };

  form.addEventListener("input", (event) => (event.target.name === "show" ? columns() : filter()));
  form.addEventListener("reset", () => setTimeout(() => { columns(); filter(); }));
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
  columns(); // a browser that goes back keeps what was ticked
}
