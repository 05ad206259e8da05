//! A table of things that come and go, each with an index and a generation.
//!
//! Pages of a fixed size instead of one vector: growing never copies what is there (100,000 connections would stop a
//! shard for milliseconds) and never holds twice the memory.

/// Bytes of a page's values: what the allocator serves as one block without rounding it up.
const PAGE_BYTES: usize = 32 * 1024;

/// Things of type `T` by index; a freed index is given to the next thing with another generation.
#[derive(Debug)]
pub struct Arena<T> {
    pages: Vec<Page<T>>,
    free: Vec<u32>,
    len: usize,
}

/// The generations lie beside the values, where they cost two bytes and not eight.
#[derive(Debug)]
struct Page<T> {
    values: Vec<Option<T>>,
    generations: Vec<u16>,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), free: Vec::new(), len: 0 }
    }
}

impl<T> Arena<T> {
    const PAGE_ENTRIES: usize = PAGE_BYTES / size_of::<Option<T>>();

    /// Things in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One more than the largest index ever used; for walks by index.
    pub fn span(&self) -> u32 {
        match self.pages.last() {
            None => 0,
            Some(last) => ((self.pages.len() - 1) * Self::PAGE_ENTRIES + last.values.len()) as u32,
        }
    }

    /// Puts `value` in; returns its index and generation.
    pub fn insert(&mut self, value: T) -> (u32, u16) {
        self.len += 1;
        if let Some(index) = self.free.pop() {
            let (page, at) = Self::place(index);
            debug_assert!(self.pages[page].values[at].is_none(), "a free index holds something");
            self.pages[page].values[at] = Some(value);
            return (index, self.pages[page].generations[at]);
        }
        let index = self.span();
        let (page, _) = Self::place(index);
        if page == self.pages.len() {
            let values = Vec::with_capacity(Self::PAGE_ENTRIES);
            self.pages.push(Page { values, generations: Vec::with_capacity(Self::PAGE_ENTRIES) });
        }
        self.pages[page].values.push(Some(value));
        self.pages[page].generations.push(0);
        (index, 0)
    }

    /// Takes what is at `index` out; whoever still holds its generation will find nobody.
    pub fn remove(&mut self, index: u32) -> Option<T> {
        let (page, at) = Self::place(index);
        let page = self.pages.get_mut(page)?;
        let value = page.values.get_mut(at)?.take()?;
        page.generations[at] = page.generations[at].wrapping_add(1);
        self.free.push(index);
        self.len -= 1;
        Some(value)
    }

    /// What is at `index`, whoever it is.
    pub fn at(&self, index: u32) -> Option<&T> {
        let (page, at) = Self::place(index);
        self.pages.get(page)?.values.get(at)?.as_ref()
    }

    /// What is at `index`, whoever it is.
    pub fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        let (page, at) = Self::place(index);
        self.pages.get_mut(page)?.values.get_mut(at)?.as_mut()
    }

    /// Generation of what is at `index`.
    pub fn generation(&self, index: u32) -> Option<u16> {
        self.at(index)?;
        let (page, at) = Self::place(index);
        self.pages.get(page)?.generations.get(at).copied()
    }

    /// Whether `index` is still what it was when `generation` was given out.
    pub fn holds(&self, index: u32, generation: u16) -> bool {
        self.generation(index) == Some(generation)
    }

    /// Everything in it, in order of index.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let values = self.pages.iter().flat_map(|page| &page.values).enumerate();
        values.filter_map(|(index, value)| value.as_ref().map(|value| (index as u32, value)))
    }

    fn place(index: u32) -> (usize, usize) {
        (index as usize / Self::PAGE_ENTRIES, index as usize % Self::PAGE_ENTRIES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_index_has_another_generation() {
        let mut arena = Arena::default();
        let (index, first) = arena.insert("a");
        assert_eq!(arena.remove(index), Some("a"));
        let (again, second) = arena.insert("b");
        assert_eq!(index, again);
        assert!(!arena.holds(index, first) && arena.holds(index, second));
    }

    #[test]
    fn indices_are_dense_over_pages() {
        let mut arena = Arena::default();
        for n in 0..10_000u32 {
            assert_eq!(arena.insert(n).0, n);
        }
        assert_eq!((arena.len(), arena.span()), (10_000, 10_000));
        assert!((0..10_000).all(|n| arena.at(n) == Some(&n)));
        assert_eq!(arena.iter().map(|(i, _)| i).sum::<u32>(), 49_995_000);
    }
}
