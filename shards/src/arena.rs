//! A table of things that come and go, each with an index and a generation.
//!
//! Pages of a fixed size instead of one vector: growing never copies what is there (100,000 connections would stop a
//! shard for milliseconds) and never holds twice the memory.

/// Entries per page. 256 x 128 B = 32 KiB: small beside what it serves, large beside the page table.
const PAGE_ENTRIES: usize = 256;

/// Things of type `T` by index; a freed index is given to the next thing with another generation.
#[derive(Debug)]
pub struct Arena<T> {
    pages: Vec<Vec<Entry<T>>>,
    free: Vec<u32>,
    len: usize,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u16,
    value: Option<T>,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), free: Vec::new(), len: 0 }
    }
}

impl<T> Arena<T> {
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
        match self.pages.len() {
            0 => 0,
            pages => ((pages - 1) * PAGE_ENTRIES + self.pages[pages - 1].len()) as u32,
        }
    }

    /// Puts `value` in; returns its index and generation.
    pub fn insert(&mut self, value: T) -> (u32, u16) {
        self.len += 1;
        if let Some(index) = self.free.pop() {
            let entry = &mut self.pages[index as usize / PAGE_ENTRIES][index as usize % PAGE_ENTRIES];
            debug_assert!(entry.value.is_none(), "a free index holds something");
            entry.value = Some(value);
            return (index, entry.generation);
        }
        let index = self.span();
        if (index as usize).is_multiple_of(PAGE_ENTRIES) {
            self.pages.push(Vec::with_capacity(PAGE_ENTRIES));
        }
        if let Some(page) = self.pages.last_mut() {
            page.push(Entry { generation: 0, value: Some(value) });
        }
        (index, 0)
    }

    /// Takes what is at `index` out; whoever still holds its generation will find nobody.
    pub fn remove(&mut self, index: u32) -> Option<T> {
        let entry =
            self.pages.get_mut(index as usize / PAGE_ENTRIES)?.get_mut(index as usize % PAGE_ENTRIES)?;
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(index);
        self.len -= 1;
        Some(value)
    }

    /// What is at `index`, whoever it is.
    pub fn at(&self, index: u32) -> Option<&T> {
        self.pages.get(index as usize / PAGE_ENTRIES)?.get(index as usize % PAGE_ENTRIES)?.value.as_ref()
    }

    /// What is at `index`, whoever it is.
    pub fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        self.pages
            .get_mut(index as usize / PAGE_ENTRIES)?
            .get_mut(index as usize % PAGE_ENTRIES)?
            .value
            .as_mut()
    }

    /// Generation of what is at `index`.
    pub fn generation(&self, index: u32) -> Option<u16> {
        let entry = self.pages.get(index as usize / PAGE_ENTRIES)?.get(index as usize % PAGE_ENTRIES)?;
        entry.value.as_ref().map(|_| entry.generation)
    }

    /// Whether `index` is still what it was when `generation` was given out.
    pub fn holds(&self, index: u32, generation: u16) -> bool {
        self.generation(index) == Some(generation)
    }

    /// Everything in it, in order of index.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.pages.iter().flatten().enumerate().filter_map(|(i, e)| e.value.as_ref().map(|v| (i as u32, v)))
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
        for n in 0..1000u32 {
            assert_eq!(arena.insert(n).0, n);
        }
        assert_eq!((arena.len(), arena.span()), (1000, 1000));
        assert!((0..1000).all(|n| arena.at(n) == Some(&n)));
        assert_eq!(arena.iter().map(|(i, _)| i).sum::<u32>(), 499_500);
    }
}
